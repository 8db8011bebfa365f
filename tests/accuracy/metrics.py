"""The error measures, each defined once.

eps    RMS(est - true) / RMS(|q||k|), pooled over all pairs of a query and a key
slope  <est, true> / <true, true>, pooled: 1 means no shrinkage
att    mean over queries of |o^ - o| / |o|, o the attention output
tv     mean over queries of the total variation distance between the two softmaxes
"""

import math

import numpy as np


def softmax(scores):
    """Softmax over the last axis of float32 scores, in place; returns the same array."""
    scores -= scores.max(-1, keepdims=True)
    np.exp(scores, out=scores)
    scores /= scores.sum(-1, keepdims=True)
    return scores


def relative_error(output, exact):
    """[..., dim] twice -> [...]: |output - exact| / |exact| over the last axis."""
    return np.linalg.norm(output - exact, axis=-1) / np.linalg.norm(exact, axis=-1)


def total_variation(weights, exact):
    """[..., tokens] twice -> [...]."""
    return 0.5 * np.abs(weights - exact).sum(-1)


class ScoreError:
    """Pools eps and slope over several sets of scores."""

    def __init__(self):
        self.error = self.norms = self.true = self.product = 0.0

    def add(self, estimate, true, queries, keys):
        """estimate, true: [queries, keys] scores q.k; queries, keys: [n, dim]."""
        # The sum over pairs of |q|^2 |k|^2 is the product of the two sums.
        self.norms += float(_sum_of_squares(queries) * _sum_of_squares(keys))
        self.error += float(_sum_of_squares(estimate - true))
        self.true += float(_sum_of_squares(true))
        self.product += float(np.vdot(estimate, true).astype(np.float64))

    def merge(self, other):
        self.error += other.error
        self.norms += other.norms
        self.true += other.true
        self.product += other.product

    @property
    def eps(self):
        return math.sqrt(self.error / self.norms)

    @property
    def slope(self):
        return self.product / self.true


def _sum_of_squares(x):
    flat = np.ravel(x)
    return np.vdot(flat, flat).astype(np.float64)


def mean_and_error(samples):
    """Mean and its standard error (sample deviation / sqrt(n)) of a 1-d array; n = 1 gives 0."""
    samples = np.asarray(samples, np.float64)
    if len(samples) < 2:
        return float(samples.mean()), 0.0
    return float(samples.mean()), float(samples.std(ddof=1) / math.sqrt(len(samples)))
