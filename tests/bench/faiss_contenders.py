"""Faiss's IndexRaBitQFastScan: the best of 4 queries among 256-bit codes. A unit is a code.

Its codes are its own, of the same numbers: two keys side by side are one vector of 256. It returns
the nearest code a query and no scores, which is less to write.
"""

import numpy

import serve
from serve import Absent, PassContender, tiled

try:
    import faiss
except ImportError:
    faiss = None

ROWS = 2  # keys of one vector


class FastScan(PassContender):
    def __init__(self, options):
        super().__init__(options)
        if faiss is None:
            raise Absent("faiss-cpu is not installed (PyPI)")
        if not hasattr(faiss, "IndexRaBitQFastScan"):
            raise Absent(f"faiss {faiss.__version__} has no IndexRaBitQFastScan")
        faiss.omp_set_num_threads(int(options.get("threads", 1)))
        vectors = serve.rows_of(options, "keys").reshape(-1, ROWS * serve.DIM)
        self._index = faiss.IndexRaBitQFastScan(ROWS * serve.DIM, faiss.METRIC_INNER_PRODUCT)
        self._index.train(vectors)
        self.bytes_per_unit = self._index.code_size
        count = max(int(options["bytes"]) // self.bytes_per_unit, len(vectors) // 8)
        while self._index.ntotal < count:
            self._index.add(vectors[:count - self._index.ntotal])
        self.units = self._index.ntotal
        queries = serve.rows_of(options, "queries").reshape(-1, ROWS * serve.DIM)
        self._queries = numpy.ascontiguousarray(queries[:int(options.get("queries", 4))])

    def one_pass(self):
        self._index.search(self._queries, 1)


if __name__ == "__main__":
    serve.serve({"faiss.score": FastScan})
