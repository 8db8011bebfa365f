"""The kernels of the QJL authors (github.com/amirzandieh/QJL), called from a checkout of it.

Usage: official_qjl.py CHECKOUT   Its modules must have been built, or are built here as its README
says but for those that are not called; nothing of it is part of this repository.
"""

import glob
import importlib.util
import os
import sys

import serve
from cuda_serve import GpuContender, bf16_rows, torch
from serve import DIM, Absent

HEADS, QUERIES = 8, 4  # its kernel takes no more queries a kv head
# Its own settings (run_longbench.py, layers from the fifteenth on).
SIGN_BITS, GROUP, OUTLIERS, OUTLIER_BITS = 256, 32, 8, 256
NVCC_OPTIONS = ["-O3", "--use_fast_math", "--expt-relaxed-constexpr", "--expt-extended-lambda"]


def _module(name, source):
    """Built by setup.py in CHECKOUT/qjl_kernel, or now; Absent where it does not build."""
    folder = os.path.join(os.path.abspath(sys.argv[1]), "qjl_kernel")
    for path in glob.glob(os.path.join(folder, name + ".*.so")):
        spec = importlib.util.spec_from_file_location(name, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    source = os.path.join(folder, "csrc", source)
    if not os.path.exists(source):
        raise Absent(f"{source} is not there")
    from torch.utils import cpp_extension
    try:
        return cpp_extension.load(name, [source], extra_cuda_cflags=NVCC_OPTIONS)
    except RuntimeError as error:
        raise Absent("does not build: " + str(error).split("\n", maxsplit=1)[0]) from error


def _projection():
    """Rows of orthogonal blocks, as its QJLSketch makes them: [SIGN_BITS][DIM]."""
    random = torch.Generator("cuda").manual_seed(1)
    blocks = [torch.linalg.qr(torch.randn(DIM, DIM, device="cuda", generator=random))[0]
              for _ in range(SIGN_BITS // DIM)]
    return (torch.cat(blocks, 1) * DIM ** 0.5).T.contiguous()


class Quantise(GpuContender):
    """Keys only: signs and the norms of outliers. The choice of outliers and the other norms, which
    are PyTorch's, are not counted."""

    def __init__(self, options):
        super().__init__(options)
        shape = int(options["sequences"]), HEADS, int(options["tokens"]) // GROUP, GROUP
        self._quantise = _module("cuda_qjl_quant", "qjl_quant_kernel.cu").qjl_quant_bf16_float
        self._keys = bf16_rows(options, "keys", *shape)  # [sequences][heads][groups][GROUP][DIM]
        self._outliers = torch.cat([part.norm(dim=-2).topk(OUTLIERS, dim=-1)[1].to(torch.uint8)
                                    for part in self._keys.split(1)]).contiguous()
        self._projection = _projection()
        self.bytes_per_unit = 2 * self._keys.numel()

    def one_pass(self):
        return self._quantise(self._keys, self._outliers, self._projection, OUTLIER_BITS)


class Score(Quantise):
    """Scores of grouped queries. The query's projection is not counted."""

    def __init__(self, options):
        super().__init__(options)
        if int(options.get("queries", QUERIES)) != QUERIES:
            raise Absent(f"takes {QUERIES} queries a kv head")
        codes, outlier_codes, outlier_norms = super().one_pass()
        norms = torch.cat([part.norm(dim=-1) for part in self._keys.split(1)])
        count = len(self._keys) * HEADS
        queries = bf16_rows(options, "queries", count, 8)[:, :QUERIES] \
            .reshape(len(self._keys), HEADS * QUERIES, 1, DIM).contiguous()
        projection = self._projection.T.contiguous()
        self._call = _module("cuda_qjl_gqa_score", "qjl_gqa_score_kernel.cu") \
            .qjl_gqa_score_cuda_bf16_float
        self._arguments = (codes, outlier_codes, norms, outlier_norms, self._outliers,
                           (queries.float() @ projection).contiguous(), queries, projection)
        self.bytes_per_unit = sum(part.nbytes for part in self._arguments[:5])
        self._check(queries)
        self._keys = None

    def _check(self, queries):
        """Scores that have little to do with products of queries and keys are no scores."""
        keys = self._keys[-1, -1].reshape(-1, DIM).float()
        exact = queries[-1, -1, 0].float() @ keys.T
        scores = self.one_pass()[-1, -1, :, 0]
        agreement = torch.corrcoef(torch.stack([exact, scores]))[0, 1].item()
        if not agreement > 0.8:
            raise ValueError(f"scores and exact products correlate by {agreement:.2f}")

    def one_pass(self):
        return self._call(*self._arguments)


if __name__ == "__main__":
    serve.serve({"official.quantise": Quantise, "official.score": Score})
