"""PyTorch in bf16 on one core: scores, and attention as matmul, softmax, matmul."""

import serve
from serve import Absent, PassContender, rows_of, tiled

try:
    import torch
except ImportError:
    torch = None

CALL_TOKENS = 8192  # keys of one call: enough that a call's own cost vanishes, in L2 or nearly


def _bf16(numbers):
    return torch.from_numpy(numbers).to(torch.bfloat16)


def _queries(options):
    return _bf16(rows_of(options, "queries")[:int(options.get("queries", 4))])


class Scores(PassContender):
    """F.linear(queries, keys), CALL_TOKENS keys at a time."""

    bytes_per_unit = 2 * serve.DIM

    def __init__(self, options):
        super().__init__(options)
        if torch is None:
            raise Absent("python3-torch is not installed")
        torch.set_num_threads(int(options.get("threads", 1)))
        self._queries = _queries(options)
        self._keys = _bf16(tiled(options, "keys", self.bytes_per_unit, 256)).split(CALL_TOKENS)
        self.units = sum(len(keys) for keys in self._keys)

    def one_pass(self):
        for keys in self._keys:
            torch.nn.functional.linear(self._queries, keys)


class Attend(PassContender):
    """One call over the whole context; the softmax in fp32."""

    bytes_per_unit = 4 * serve.DIM

    def __init__(self, options):
        super().__init__(options)
        if torch is None:
            raise Absent("python3-torch is not installed")
        torch.set_num_threads(int(options.get("threads", 1)))
        self._queries = _queries(options)
        self._keys = _bf16(tiled(options, "keys", self.bytes_per_unit, 256))
        self._values = _bf16(tiled(options, "values", self.bytes_per_unit, 256))
        self.units = len(self._keys)

    def one_pass(self):
        scores = torch.nn.functional.linear(self._queries, self._keys).float()
        weights = torch.softmax(scores * serve.DIM ** -0.5, dim=-1).to(torch.bfloat16)
        torch.matmul(weights, self._values)


if __name__ == "__main__":
    serve.serve({"torch.score": Scores, "torch.attend": Attend})
