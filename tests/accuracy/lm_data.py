"""The texts of tiny-lm, run through the exact model once: what sections (b) and (d) compare with.

heldout.txt has 48 segments of 1,024 bytes: the first 32 are measured, the last 16 calibrate tables.
sample.txt has 16 draws of the model itself, each begun after a newline that is not in the file and
1,023 bytes long: measured with the same tables, they show a shift of the distribution.
"""

import dataclasses
import os

import numpy as np

import parallel
from codec import Samples, save_samples
from ours import write_calibration
from tiny_lm import attention_weights, log_softmax, weighted_values

SEGMENT = 1024
STORED = 768  # tokens of a segment held by the codec; the rest of the segment is predicted
CALIBRATION_SEGMENTS = 16
QUERY_STRIDE = 3  # attention errors are taken at every third of the predicting positions


@dataclasses.dataclass
class LmData:
    """Everything exact. Axis 0 is the segment: held-out ones first, then samples."""

    model: object  # TinyLm
    text: np.ndarray  # uint8 [segments, 1024]
    num_heldout: int
    keys: np.ndarray  # [segments, layers, kv_heads, 1024, dim], bf16 values
    values: np.ndarray
    queries: np.ndarray  # [segments, layers, q_heads, positions, dim]
    positions: np.ndarray  # of the queries: 768, 771, ...
    log_probs: np.ndarray  # [segments, 255, 256] from positions 768..1022
    stored: Samples  # tokens 0..767

    def groups(self):
        """(text name, its segments)."""
        total = len(self.text)
        return (("heldout", range(self.num_heldout)), ("sample", range(self.num_heldout, total)))

    def visible(self, tokens):
        """bool [positions, tokens]: what each query may see."""
        return np.arange(tokens) <= self.positions[:, None]


def read_texts(folder, quick):
    """(calibration, held-out, sample) segments, uint8 [n, 1024] each."""
    heldout = np.fromfile(os.path.join(folder, "heldout.txt"), np.uint8).reshape(-1, SEGMENT)
    draws = np.fromfile(os.path.join(folder, "sample.txt"), np.uint8).reshape(-1, SEGMENT)
    newline = np.full((len(draws), 1), ord("\n"), np.uint8)
    samples = np.concatenate([newline, draws[:, :-1]], 1)
    measured, calibration = heldout[:-CALIBRATION_SEGMENTS], heldout[-CALIBRATION_SEGMENTS:]
    if quick:
        return calibration[:6], measured[::8], samples[:2]
    return calibration, measured, samples


def predict(model, text, keys, values):
    """Log-probabilities [255, 256] of bytes 769..1023, given the first 768 tokens' keys and values
    [layers, kv_heads, 768, dim]; the model's own newer tokens are exact."""
    past = [(keys[layer], values[layer]) for layer in range(model.layers)]
    logits, _ = model.forward(text[STORED : SEGMENT - 1], STORED, past)
    return log_softmax(logits)


def exact_attention(data, segment, layer):
    """(weights [q_heads, positions, 1024], scores, outputs) of the exact cache."""
    weights, scores = attention_weights(data.queries[segment, layer], data.keys[segment, layer],
                                        data.visible(SEGMENT))
    return weights, scores, weighted_values(weights, data.values[segment, layer])


def make_data(context, model):
    """Runs the exact model over all segments; the calibration ones are for tables only."""
    calibration, heldout, samples = read_texts(model.folder, context.quick)
    text = np.concatenate([heldout, samples])
    positions = np.arange(STORED, SEGMENT - 1, QUERY_STRIDE)

    def prefill(item):
        tokens, calibrating = item
        _, made = model.forward(tokens)
        queries, keys, values = (np.stack([layer[kind] for layer in made]) for kind in range(3))
        if calibrating:
            return queries, keys, values
        log_probs = predict(model, tokens, keys[:, :, :STORED], values[:, :, :STORED])
        return queries[:, :, positions], keys, values, log_probs

    items = [(tokens, True) for tokens in calibration] + [(tokens, False) for tokens in text]
    made = parallel.run(prefill, items, context.jobs, "exact model")
    context.require(made)
    # [segments, layers, heads, tokens, dim] -> per layer [segments * tokens, heads, dim]
    layers = [{kind: np.concatenate([one[index][layer].transpose(1, 0, 2)
                                     for one in made[: len(calibration)]])
               for index, kind in enumerate(("queries", "keys", "values"))}
              for layer in range(model.layers)]
    calibration_path = os.path.join(context.scratch, "tiny-lm.safetensors")
    write_calibration(calibration_path, layers, SEGMENT)
    measured = made[len(calibration) :]
    queries, keys, values, log_probs = (np.stack([one[kind] for one in measured])
                                        for kind in range(4))
    stored = save_samples(context.scratch, "tiny-lm", keys[..., :STORED, :],
                          values[..., :STORED, :], "bf16", calibration_path)
    return LmData(model, text, len(heldout), keys, values, queries, positions, log_probs, stored)
