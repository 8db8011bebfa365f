"""The numbers that every contender works on: random normal keys, values and queries."""

import os

import numpy

TOKENS = 16384  # distinct ones; contenders repeat them up to their working set
DIM = 128


def write(folder, seed=20261124):
    """keys.f32 and values.f32 [TOKENS][DIM], each number exactly a bf16; queries.f32 [8][DIM]."""
    random = numpy.random.default_rng(seed)
    for name, rows in (("keys", TOKENS), ("values", TOKENS), ("queries", 8)):
        numbers = random.standard_normal((rows, DIM), dtype=numpy.float32)
        if name != "queries":
            bits = (numbers.view(numpy.uint32) + 0x8000) & 0xFFFF0000
            numbers = bits.astype(numpy.uint32).view(numpy.float32)
        numbers.tofile(os.path.join(folder, name + ".f32"))
