"""Synthetic keys, queries and values: the three families of the Monte-Carlo that the first targets
were set by, draw for draw the same at head_dim 128.

gauss     iid N(0, 1)
out-rnd   gauss, 4 planted channels times 10 (random sign a token)
out-mean  gauss, 4 planted channels are +-10 + N(0, 1): what real key caches look like (2402.02750)

Queries are N(0, 1) plus a pull towards 4 keys each, so that the softmax has heavy hitters.
"""

import dataclasses

import numpy as np

FAMILIES = ("gauss", "out-rnd", "out-mean")
TOKENS = 2048
QUERIES = 64
PLANTED = 4


@dataclasses.dataclass
class Trial:
    """One draw: keys, values [tokens, dim], queries [queries, dim], all float32."""

    keys: np.ndarray
    queries: np.ndarray
    values: np.ndarray


def draw(family, trial, dim):
    """The data that is measured."""
    rng = np.random.default_rng(1000 + trial)
    keys = rng.standard_normal((TOKENS, dim)).astype(np.float32)
    channels, signs = _plant(family, rng, dim)
    _apply(family, keys, channels, signs)
    queries = rng.standard_normal((QUERIES, dim)).astype(np.float32)
    hits = rng.choice(TOKENS, (QUERIES, PLANTED))
    values = rng.standard_normal((TOKENS, dim)).astype(np.float32)
    return Trial(keys, queries + _pull(family, keys, hits), values)


def draw_calibration(family, trial, dim, tokens):
    """Fresh tokens with the planted channels of `trial`, a query a token: what tables are made
    from."""
    rng = np.random.default_rng(1000 + trial)
    rng.standard_normal((TOKENS, dim))
    channels, signs = _plant(family, rng, dim)
    rng = np.random.default_rng(500_000 + trial)
    keys, queries, values = rng.standard_normal((3, tokens, dim)).astype(np.float32)
    _apply(family, keys, channels, signs)
    hits = rng.choice(tokens, (tokens, PLANTED))
    return Trial(keys, queries + _pull(family, keys, hits), values)


def _plant(family, rng, dim):
    channels = rng.choice(dim, PLANTED, replace=False)
    signs = rng.choice([-1, 1], PLANTED) if family == "out-mean" else None
    return channels, signs


def _apply(family, keys, channels, signs):
    if family == "out-rnd":
        keys[:, channels] *= 10
    elif family == "out-mean":
        keys[:, channels] += 10 * signs.astype(np.float32)


def _pull(family, keys, hits):
    """0.25 times the sum of the keys hit, every channel on the scale of an ordinary one."""
    base = keys
    if family != "gauss":
        base = keys / np.maximum(np.abs(keys).mean(0), 1e-6)
    return 0.25 * base[hits].sum(1)
