"""Contenders written in Python: the same lines on stdin and stdout as sketchkv_bench."""

import os
import sys
import time

import numpy

DIM = 128


class Absent(Exception):
    """Not on this machine; the message is the reason."""


def rows_of(options, name):
    """A file of this run: fp32 [rows][DIM]."""
    path = os.path.join(options["data"], name + ".f32")
    return numpy.fromfile(path, dtype=numpy.float32).reshape(-1, DIM)


def tiled(options, name, bytes_per_row, granule):
    """As many rows as option `bytes` holds, a multiple of `granule`, repeated where need be."""
    count = max(int(options["bytes"]) // bytes_per_row // granule, 1) * granule
    return numpy.resize(rows_of(options, name), (count, DIM))


class PassContender:
    """A contender that repeats `one_pass` until a clock is exact."""

    units = 0
    bytes_per_unit = 0

    def __init__(self, options):
        self._min_ns = 1e6 * float(options.get("min_ms", 15))

    def one_pass(self):
        raise NotImplementedError

    def run(self):
        units, begin, now = 0, time.perf_counter_ns(), 0
        while now - begin < self._min_ns:
            self.one_pass()
            units += self.units
            now = time.perf_counter_ns()
        return now - begin, units


def _answer(line, factories, contenders):
    command, ident, *words = line.split()
    if command == "prepare":
        options = dict(word.split("=", 1) for word in words[1:])
        try:
            contender = factories[words[0]](options)
            contender.run()
        except Absent as reason:
            return f"absent {reason}"
        contenders[ident] = contender
        return f"ok {contender.bytes_per_unit}"
    if command == "run":
        nanoseconds, units = contenders[ident].run()
        return f"ok {nanoseconds} {units}"
    del contenders[ident]
    return "ok"


def serve(factories):
    """Until stdin ends. `factories`: {name: class or function of the options}."""
    contenders = {}
    for line in sys.stdin:
        try:
            answer = _answer(line, factories, contenders)
        except Exception as error:  # the driver reports it, whatever it is
            answer = f"error {type(error).__name__}: {error}".replace("\n", "; ")
        print(answer, flush=True)
