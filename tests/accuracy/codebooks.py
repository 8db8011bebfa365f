"""Rotations and codebooks that several peers are built from."""

import functools
import math

import numpy as np


def haar_rotation(dim, rng):
    """A uniformly random rotation, float32 [dim, dim], rows orthonormal (QR of a Gaussian)."""
    q, r = np.linalg.qr(rng.standard_normal((dim, dim)))
    return np.ascontiguousarray((q * np.sign(np.diag(r))).T, np.float32)


@functools.lru_cache(maxsize=None)
def sphere_levels(dim, bits):
    """The 2^bits Lloyd-Max levels, ascending float32, of a coordinate of a random unit vector times
    sqrt(dim): density (1 - x^2/dim)^((dim-3)/2), which tends to N(0, 1) (Lloyd 1982, Max 1960)."""
    edge = min(math.sqrt(dim), 8.0)
    x = np.linspace(-edge, edge, 200_001)
    mass = np.clip(1 - x * x / dim, 0, None) ** ((dim - 3) / 2)
    mass_below = np.concatenate([[0], np.cumsum(mass)])
    moment_below = np.concatenate([[0], np.cumsum(mass * x)])
    quantiles = (np.arange(2**bits) + 0.5) / 2**bits
    levels = np.interp(quantiles, mass_below[1:] / mass_below[-1], x)
    for _ in range(400):
        cuts = np.searchsorted(x, (levels[1:] + levels[:-1]) / 2)
        cuts = np.concatenate([[0], cuts, [len(x)]])
        levels = np.diff(moment_below[cuts]) / np.diff(mass_below[cuts])
    return ((levels - levels[::-1]) / 2).astype(np.float32)


def nearest_level(x, levels):
    """Each number of x -> the nearest of the ascending levels, same shape."""
    return levels[np.searchsorted((levels[1:] + levels[:-1]) / 2, x)]
