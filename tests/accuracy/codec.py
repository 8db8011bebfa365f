"""What the sections know of a codec: it takes keys and values and gives them back with its bits.

Every score of every codec here is linear in the key, so <q, k^> of the reconstruction k^ is the
score: measuring reconstructions measures scores and attention too.
"""

import dataclasses
import os
from typing import Callable, Optional

import numpy as np


@dataclasses.dataclass
class Samples:
    """Keys and values to run a codec on, in memory and as files for the executables.

    keys, values: float32 [segments, layers, kv_heads, tokens, dim], rounded to `dtype` already;
    values may be None where only keys are measured.
    calibration_path: file that tables for these layers and heads are made from.
    """

    name: str
    keys: np.ndarray
    values: Optional[np.ndarray]
    dtype: str
    keys_path: str
    values_path: Optional[str]
    calibration_path: str


def save_samples(folder, name, keys, values, dtype, calibration_path):
    """Makes Samples, writing the arrays under `folder`."""
    paths = []
    for kind, array in (("keys", keys), ("values", values)):
        if array is None:
            paths.append(None)
            continue
        paths.append(os.path.join(folder, f"{name}.{kind}.npy".replace(" ", "_")))
        np.save(paths[-1], np.ascontiguousarray(array, np.float32))
    return Samples(name, keys, values, dtype, *paths, calibration_path)


@dataclasses.dataclass
class Reconstruction:
    """A codec's answer; bits are stored bits a number, everything counted."""

    keys: np.ndarray
    values: Optional[np.ndarray]
    key_bits: float
    value_bits: float
    bits: float


@dataclasses.dataclass(frozen=True)
class Codec:
    """One row of the tables.

    name: for our profiles the spec as a user types it.
    keys, values: what tells two key (value) codecs apart, so that each is measured alone once.
    reconstruct: (Samples, block_tokens) -> Reconstruction.
    """

    name: str
    keys: str
    values: str
    ours: bool
    reconstruct: Callable


def plan_parts(codecs):
    """[(codec, parts)]: everyone's "both", and "keys" ("values") where that half is new."""
    seen, plan = set(), []
    for codec in codecs:
        parts = ["both"]
        for part, half in (("keys", codec.keys), ("values", codec.values)):
            if (part, half) not in seen:
                seen.add((part, half))
                parts.append(part)
        plan.append((codec, parts))
    return plan
