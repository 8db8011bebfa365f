"""Peers without a rotation: KIVI, per-token int4, fp8 and bf16.

A peer's codec here is a function of rows float32 [tokens, dim] -> the rows it gives back, same
shape, of one (segment, layer, head); tokens is a multiple of 32.
"""

import numpy as np

from tensors import round_bf16, round_fp16

GROUP = 32


def minmax(x, bits):
    """Min-max codes along the last axis: fp16 minimum and scale, `bits` a number, rounded to
    nearest against the rounded constants. A constant group has scale 0 and is its minimum."""
    minimum = round_fp16(x.min(-1, keepdims=True))
    scale = round_fp16((x.max(-1, keepdims=True) - minimum) / (2**bits - 1))
    safe = np.where(scale > 0, scale, 1)
    codes = np.clip(np.rint((x - minimum) / safe), 0, 2**bits - 1)
    return (codes * scale + minimum).astype(np.float32)


def minmax_per_token(rows, bits):
    """KIVI's values, and QJL's (2402.02750; amirzandieh/QJL:models/new_pack.py): per token in
    groups of 32 channels. bits + 32/32 bits a number."""
    return minmax(rows.reshape(len(rows), -1, GROUP), bits).reshape(rows.shape)


def minmax_per_channel(rows, bits):
    """KIVI's keys (2402.02750, jy-yuan/KIVI): per channel in groups of 32 tokens. bits + 32/32 bits
    a number. The exact window of recent tokens is not part of it: stored tokens are all old."""
    by_channel = rows.reshape(-1, GROUP, rows.shape[1]).transpose(0, 2, 1)
    return minmax(by_channel, bits).transpose(0, 2, 1).reshape(rows.shape)


def int4_per_token(rows):
    """Symmetric int4 per token in groups of 32 channels as in q4_0 of
    ggml-org/llama.cpp:ggml/src/ggml-quants.c: scale = the number of largest magnitude / -8 in fp16,
    codes -8..7. 4 + 16/32 bits a number."""
    groups = rows.reshape(len(rows), -1, GROUP)
    index = np.abs(groups).argmax(-1)[..., None]
    scale = np.take_along_axis(groups, index, -1) / -8
    inverse = np.where(scale != 0, 1 / np.where(scale != 0, scale, 1), 0)
    codes = np.clip(np.floor(groups * inverse + 8.5), 0, 15) - 8
    return (codes * round_fp16(scale)).reshape(rows.shape).astype(np.float32)


def fp8_e4m3(rows):
    """OCP FP8 E4M3 (2209.05433): 3 bits of mantissa, smallest normal 2^-6, saturating at 448, ties
    to even, per-tensor scale 1. 8 bits a number."""
    clipped = np.clip(rows, -448, 448)
    exponent = np.maximum(np.frexp(clipped)[1] - 1, -6)
    step = np.ldexp(np.float32(1), exponent - 3)
    return (np.rint(clipped / step) * step).astype(np.float32)


def bf16(rows):
    """16 bits a number."""
    return round_bf16(rows)
