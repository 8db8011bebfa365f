"""QJL as its authors released it, written from scratch (2406.03482; amirzandieh/QJL).

Source of each choice: S by QR per dim columns times sqrt(dim), models/llama2_utils_qjl.py; the 8
outlier channels of most L2 norm per 32 tokens and the two stored norms,
QJLKeyQuantizer.build_sketch; the second sketch by the first rows of the same S and "bit =
projection > 0", csrc/qjl_quant_kernel.cu; the score with masked queries,
csrc/qjl_gqa_score_kernel.cu; the widths, run_longbench.py. The window of recent exact tokens is not
used. Where the released code takes the root of a negative difference of rounded norms, this takes
0. At other dims than 128 the widths are the same multiples of dim.
"""

import math

import numpy as np

from codebooks import haar_rotation
from tensors import round_fp16

GROUP = 32
OUTLIERS = 8
EARLY_SHARE = 15 / 32  # of the layers: run_longbench.py, 15 initial layers of 32


def widths(dim, early):
    """(bits of the sketch, bits of the outliers' sketch): 512 + 128 and 256 + 256 at dim 128."""
    return (4 * dim, dim) if early else (2 * dim, 2 * dim)


def key_bits(dim, early):
    """Stored bits a key coordinate: both sketches, two fp16 norms, 8 one-byte channels per 32."""
    return (sum(widths(dim, early)) + 32 + 8 * OUTLIERS / GROUP) / dim


class QjlKeys:
    """Made once per layer: all heads share S, as in the released code."""

    def __init__(self, dim, early, rng):
        self.bits, self.outlier_bits = widths(dim, early)
        blocks = [haar_rotation(dim, rng) for _ in range(-(-self.bits // dim))]
        self.sketch = np.concatenate(blocks)[: self.bits] * np.float32(math.sqrt(dim))

    def __call__(self, rows):
        """float32 [tokens, dim] -> k^ with <q, k^> equal to the released score of q.

        The score projects q without (with only) the outlier channels of the key's group; the same
        number comes from clearing (keeping only) those channels of the reconstruction.
        """
        tokens, dim = rows.shape
        groups = rows.reshape(-1, GROUP, dim)
        order = np.argsort(-np.linalg.norm(groups, axis=1), axis=1, kind="stable")
        outlier = np.zeros((len(groups), dim), np.float32)
        np.put_along_axis(outlier, order[:, :OUTLIERS], 1, axis=1)
        outlier = np.repeat(outlier, GROUP, axis=0)
        rest = rows * (1 - outlier)
        norm = round_fp16(np.linalg.norm(rows, axis=1, keepdims=True))
        outlier_norm = round_fp16(np.linalg.norm(rows * outlier, axis=1, keepdims=True))
        rest_norm = np.sqrt(np.maximum(norm**2 - outlier_norm**2, 0))
        first_rows = self.sketch[: self.outlier_bits]
        return (1 - outlier) * _sketched(rest, self.sketch, rest_norm) + outlier * _sketched(
            rows - rest, first_rows, outlier_norm
        )


def _sketched(rows, sketch, norms):
    """sqrt(pi/2)/m * norm * S^T sign(S k), [tokens, dim]."""
    signs = np.where(rows @ sketch.T > 0, np.float32(1), np.float32(-1))
    return (signs @ sketch) * (norms * np.float32(math.sqrt(math.pi / 2) / len(sketch)))
