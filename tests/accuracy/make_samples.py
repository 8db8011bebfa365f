"""Writes the sample of tiny-lm's keys, queries and values that tables are made of.

Usage: make_samples.py MODEL_FOLDER FILE.safetensors

The last 16 segments of heldout.txt, which neither the demo nor the instrument measures on. `sketchkv
tune` made tests/data/tiny-lm/klt.safetensors of it (the README there has the command).
"""

import sys

import numpy as np

import lm_data
from ours import write_calibration
from tiny_lm import TinyLm


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    model = TinyLm(sys.argv[1])
    calibration, _, _ = lm_data.read_texts(model.folder, quick=False)
    layers = [{"queries": [], "keys": [], "values": []} for _ in range(model.layers)]
    for tokens in calibration:
        _, made = model.forward(tokens)
        for layer, kinds in zip(layers, made):
            for name, array in zip(("queries", "keys", "values"), kinds):
                layer[name].append(array.transpose(1, 0, 2))  # [tokens, heads, dim]
    joined = [{name: np.concatenate(parts) for name, parts in layer.items()} for layer in layers]
    write_calibration(sys.argv[2], joined, lm_data.SEGMENT)


if __name__ == "__main__":
    main()
