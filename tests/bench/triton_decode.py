"""Split decode attention over bf16 in Triton: programs that each take a share of a kv head's
tokens, and a second kernel that merges what they found."""

import math

import torch
import triton
import triton.language as tl

ROWS = 16  # of a matrix product, of which the queries fill some
MAX_SPLITS = 64


@triton.jit
def _attend_share(queries, keys, values, outs, maxima, sums, num_tokens, num_queries, scale,
                  DIM: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr):
    """Program (pair, share). Scores are in units of log2; `scale` holds the factor."""
    pair, share = tl.program_id(0), tl.program_id(1)
    shares = tl.num_programs(1)
    length = tl.cdiv(tl.cdiv(num_tokens, shares), TILE) * TILE
    row, channel = tl.arange(0, ROWS), tl.arange(0, DIM)
    own = row[:, None] < num_queries
    query = tl.load(queries + (pair * num_queries + row[:, None]) * DIM + channel[None, :],
                    mask=own, other=0.0)
    maximum = tl.full([ROWS], -float("inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    out = tl.zeros([ROWS, DIM], tl.float32)
    for begin in range(share * length, tl.minimum((share + 1) * length, num_tokens), TILE):
        token = begin + tl.arange(0, TILE)
        there = token[:, None] < num_tokens
        at = (pair.to(tl.int64) * num_tokens + token[:, None]) * DIM + channel[None, :]
        key = tl.load(keys + at, mask=there, other=0.0)
        score = tl.dot(query, tl.trans(key)) * scale
        score = tl.where(token[None, :] < num_tokens, score, -float("inf"))
        larger = tl.maximum(maximum, tl.max(score, 1))
        weight = tl.exp2(score - larger[:, None])
        fade = tl.exp2(maximum - larger)
        value = tl.load(values + at, mask=there, other=0.0)
        out = out * fade[:, None] + tl.dot(weight.to(tl.bfloat16), value)
        total = total * fade + tl.sum(weight, 1)
        maximum = larger
    part = (pair * shares + share) * ROWS + row
    tl.store(outs + part[:, None] * DIM + channel[None, :], out)
    tl.store(maxima + part, maximum)
    tl.store(sums + part, total)


@triton.jit
def _merge(outs, maxima, sums, result, shares, num_queries, DIM: tl.constexpr, ROWS: tl.constexpr,
           MAX: tl.constexpr):
    """Program (pair, query)."""
    pair, query = tl.program_id(0), tl.program_id(1)
    share, channel = tl.arange(0, MAX), tl.arange(0, DIM)
    there = share < shares
    part = (pair * shares + share) * ROWS + query
    maximum = tl.load(maxima + part, mask=there, other=-float("inf"))
    weight = tl.exp2(maximum - tl.max(maximum, 0))
    total = tl.sum(tl.load(sums + part, mask=there, other=0.0) * weight, 0)
    out = tl.load(outs + part[:, None] * DIM + channel[None, :], mask=there[:, None], other=0.0)
    tl.store(result + (pair * num_queries + query) * DIM + channel,
             tl.sum(out * weight[:, None], 0) / total)


def shapes(pairs):
    """(tokens a tile, warps, shares a pair) worth trying for so many pairs of sequence and head."""
    shares = [count for count in (1, 2, 4, 16, 32, MAX_SPLITS) if 96 <= count * pairs <= 1024]
    return [(tile, warps, count) for tile in (64, 128) for warps in (4, 8) for count in shares]


class SplitDecode:
    """A way to attend (tests/bench/gpu_torch_contenders.py)."""

    def __init__(self, queries, tile, warps, shares):
        """queries: bf16 [sequences][heads][queries][dim]."""
        self._queries, self._tile, self._warps, self._shares = queries, tile, warps, shares
        sequences, heads, count, dim = queries.shape
        self._pairs = sequences * heads
        parts = self._pairs * shares * ROWS
        self._outs, self._maxima, self._sums, self._result = (
            torch.empty(size, device=queries.device)
            for size in (parts * dim, parts, parts, self._pairs * count * dim))

    def __call__(self, keys, values):
        count, dim = self._queries.shape[2:]
        _attend_share[(self._pairs, self._shares)](
            self._queries, keys, values, self._outs, self._maxima, self._sums, keys.shape[2], count,
            math.log2(math.e) / math.sqrt(dim), dim, ROWS, self._tile, num_warps=self._warps)
        _merge[(self._pairs, count)](self._outs, self._maxima, self._sums, self._result,
                                     self._shares, count, dim, ROWS, MAX_SPLITS)
        return self._result
