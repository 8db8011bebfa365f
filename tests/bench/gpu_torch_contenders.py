"""Exact attention of one query over bf16 on a GPU: PyTorch's backends and a split decode in Triton.

A unit is one call over all sequences. Option layers: calls in a graph, each on keys and values of
its own, so that none finds them in a cache.
"""

import functools
import math
import warnings

import serve
from cuda_serve import GpuContender, bf16_rows, recorded, torch
from serve import DIM, Absent

HEADS = 8
ERROR = 0.01  # relative, of bf16 outputs


@functools.lru_cache(maxsize=1)
def _keys_and_values(layers, sequences, tokens, data):
    """[(keys, values)], each [sequences][HEADS][tokens][DIM]; one shape at a time is kept."""
    torch.cuda.empty_cache()
    return [tuple(bf16_rows({"data": data}, name, sequences, HEADS, tokens)
                  for name in ("keys", "values")) for _ in range(layers)]


def _reference(queries, keys, values):
    """Of the last sequence and kv head, in float64: [queries][DIM]."""
    scores = queries[-1, -1].double() @ keys[-1, -1].double().T / math.sqrt(DIM)
    return scores.softmax(-1) @ values[-1, -1].double()


class Attend(GpuContender):
    """Takes the fastest of the ways that `_ways` knows; checks its answer."""

    def __init__(self, options):
        super().__init__(options)
        self.units = int(options.get("layers", 1))
        self._count = int(options.get("queries", 4))
        shape = int(options["sequences"]), int(options["tokens"])
        layers = self._layers = _keys_and_values(self.units, *shape, options["data"])
        self.bytes_per_unit = sum(part.nbytes for part in layers[0])
        # [sequences][HEADS][queries][DIM]
        self._queries = bf16_rows(options, "queries", shape[0] * HEADS, 8)[:, :self._count] \
            .reshape(shape[0], HEADS, self._count, DIM).contiguous()
        best, reasons = None, []
        for way in self._ways():
            try:
                self._check(way, *layers[0])
                self._graph = recorded([functools.partial(way, *layer) for layer in layers])
                self._milliseconds(1)
                found = self._milliseconds(3), self._graph
            except RuntimeError as error:  # a backend that does not take this, or no memory
                reasons.append(str(error).split("\n", maxsplit=1)[0][:120])
                continue
            best = min(best or found, found, key=lambda pair: pair[0])
        if best is None:
            raise Absent(reasons[0])
        self._graph = best[1]

    def _ways(self):
        """Functions of keys and values to [sequences][HEADS][queries][DIM] in some shape."""
        raise NotImplementedError

    def _check(self, way, keys, values):
        want = _reference(self._queries, keys, values)
        got = way(keys, values).reshape(self._queries.shape)[-1, -1].double()
        error = ((got - want).norm() / want.norm()).item()
        if not error < ERROR:
            raise ValueError(f"relative error {error:.2g}, at most {ERROR}")

    def one_pass(self):
        self._graph.replay()


def _sdpa(backend):
    class Sdpa(Attend):
        """Grouped queries by PyTorch's own option, or as the rows of one head's query."""

        def _ways(self):
            kernels = torch.nn.attention
            attention = torch.nn.functional.scaled_dot_product_attention
            chosen = getattr(kernels.SDPBackend, backend)
            heads = self._queries.reshape(len(self._queries), HEADS * self._count, 1, DIM)

            def grouped(keys, values):
                with kernels.sdpa_kernel(chosen):
                    return attention(heads, keys, values, enable_gqa=True)

            def folded(keys, values):
                with kernels.sdpa_kernel(chosen):
                    return attention(self._queries, keys, values)

            return grouped, folded

    return Sdpa


class Triton(Attend):
    """tests/bench/triton_decode.py, the best of its shapes."""

    def _ways(self):
        try:
            import triton_decode
        except ImportError as error:
            raise Absent(f"no Triton: {error}") from error
        return [triton_decode.SplitDecode(self._queries, *shape)
                for shape in triton_decode.shapes(len(self._queries) * HEADS)]


if __name__ == "__main__":
    # A backend that does not take a shape warns and raises; the exception is what counts.
    warnings.simplefilter("ignore")
    serve.serve({
        "sdpa.flash": _sdpa("FLASH_ATTENTION"),
        "sdpa.cudnn": _sdpa("CUDNN_ATTENTION"),
        "sdpa.efficient": _sdpa("EFFICIENT_ATTENTION"),
        "triton.decode": Triton})
