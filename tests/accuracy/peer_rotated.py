"""Peers that rotate first: TurboQuant and extended RaBitQ, written from their papers.

Each class is made once per layer with its random matrices; `rows` is float32 [tokens, dim] of one
(segment, layer, head).
"""

import math

import numpy as np

from codebooks import haar_rotation, nearest_level, sphere_levels
from tensors import round_fp16

# Step of the best uniform quantiser of N(0, 1) with 2^bits levels (Max 1960).
_UNIFORM_STEP = {2: 0.9957, 3: 0.5860, 4: 0.3352}
_TINY = 1e-30


class TurboQuantMse:
    """TurboQuant_mse (2504.19874, Algorithm 1): a random rotation, then each coordinate of the unit
    vector to the nearest Lloyd-Max level; the norm in fp16. bits + 16/dim bits a number. Shrinks:
    slope 0.88 at 2 bits. The paper's mixed 2.5 and 3.5 bit settings split channels by a calibrated
    outlier set; whole widths need none and are measured instead."""

    def __init__(self, dim, bits, rng):
        self.rotation = haar_rotation(dim, rng)
        self.levels = sphere_levels(dim, bits)

    def __call__(self, rows):
        norms = np.linalg.norm(rows, axis=1, keepdims=True)
        root = np.float32(math.sqrt(rows.shape[1]))
        unit = (rows @ self.rotation.T) * (root / np.maximum(norms, _TINY))
        return (nearest_level(unit, self.levels) @ self.rotation) * (round_fp16(norms) / root)


class TurboQuantProd:
    """TurboQuant_prod (2504.19874, Algorithm 2): TurboQuant_mse at bits - 1, then a 1-bit QJL of
    the residual with dim iid Gaussian rows; both norms in fp16. bits + 32/dim bits a number."""

    def __init__(self, dim, bits, rng):
        self.mse = TurboQuantMse(dim, bits - 1, rng)
        self.sketch = rng.standard_normal((dim, dim)).astype(np.float32)

    def __call__(self, rows):
        coarse = self.mse(rows)
        residual = rows - coarse
        signs = np.where(residual @ self.sketch.T > 0, np.float32(1), np.float32(-1))
        norms = round_fp16(np.linalg.norm(residual, axis=1, keepdims=True))
        constant = np.float32(math.sqrt(math.pi / 2) / len(self.sketch))
        return coarse + (signs @ self.sketch) * (norms * constant)


class ExtendedRabitq:
    """Extended RaBitQ (2409.09913): a random rotation, then the vector of the grid
    {+-1/2, +-3/2, ...}^dim of least angle to the key, found by rescaling the key and rounding, and
    the factor |k|^2 / <k, code> that makes the part along the key exact. bits + 16/dim bits a
    number: one fp16 factor is counted, where the library stores two fp32. Rescaling is searched
    over 24 factors instead of all critical ones. No centroid is taken out.
    """

    def __init__(self, dim, bits, rng):
        self.rotation = haar_rotation(dim, rng)
        self.limit = np.float32(2 ** (bits - 1) - 0.5)
        self.rescales = np.geomspace(0.62, 1.6, 24) / _UNIFORM_STEP[bits]

    def __call__(self, rows):
        norms = np.linalg.norm(rows, axis=1, keepdims=True)
        root = np.float32(math.sqrt(rows.shape[1]))
        unit = (rows @ self.rotation.T) * (root / np.maximum(norms, _TINY))
        best = np.full(len(rows), -np.inf, np.float32)
        codes = np.empty_like(unit)
        for rescale in self.rescales:
            trial = unit * np.float32(rescale)
            np.floor(trial, out=trial)
            trial += np.float32(0.5)
            np.clip(trial, -self.limit, self.limit, out=trial)
            dot = np.einsum("td,td->t", unit, trial)
            cosine = dot / np.sqrt(np.einsum("td,td->t", trial, trial))
            better = cosine > best
            best[better] = cosine[better]
            codes[better] = trial[better]
        dots = np.einsum("td,td->t", unit, codes)[:, None]
        factors = round_fp16(norms * root / np.maximum(dots, _TINY))
        return (codes @ self.rotation) * factors
