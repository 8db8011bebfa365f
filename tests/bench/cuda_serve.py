"""Contenders on a GPU in Python: what tests/bench/gpu_contender.h is in C++."""

import math

from serve import Absent, rows_of

try:
    import torch
except ImportError:
    torch = None


def need_card():
    if torch is None:
        raise Absent("needs a GPU: PyTorch is not installed")
    if not torch.cuda.is_available():
        raise Absent("needs a GPU: PyTorch finds none")


def bf16_rows(options, name, *shape):
    """The run's rows `name`, repeated: bf16 on the card, `shape` and a last dimension of 128."""
    rows = torch.from_numpy(rows_of(options, name)).to("cuda", torch.bfloat16)
    count = math.prod(shape)
    result = torch.empty(count, rows.shape[1], device="cuda", dtype=torch.bfloat16)
    for begin in range(0, count, len(rows)):
        result[begin:begin + len(rows)] = rows[:count - begin]
    return result.view(*shape, rows.shape[1])


class GpuContender:
    """Repeats `one_pass` between two CUDA events, as often as fills option min_ms; one pass before
    them does not count."""

    units = 1  # of a pass
    bytes_per_unit = 0

    def __init__(self, options):
        need_card()
        self._min_ms = float(options.get("min_ms", 15))
        self._passes = 0  # of a repetition; 0: not known yet
        self._begin, self._end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def one_pass(self):
        """Enqueues one on the current stream."""
        raise NotImplementedError

    def _milliseconds(self, passes):
        self._begin.record()
        for _ in range(passes):
            self.one_pass()
        self._end.record()
        self._end.synchronize()
        return self._begin.elapsed_time(self._end)

    def run(self):
        self.one_pass()
        if not self._passes:
            self._passes = max(math.ceil(self._min_ms / max(self._milliseconds(1), 1e-3)), 1)
        return 1e6 * self._milliseconds(self._passes), self._passes * self.units


def recorded(calls):
    """A CUDA graph of functions, one after the other. What they return lives in the graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for call in calls:
            call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    return graph
