"""Metrics of the kernels: one process, one core, but for score.threads."""

import contest
import rows
from contest import Entry
from rows import Bar

PROFILES = ("qjl", "qjl3p")  # 256 sign bits; the default profile


class Kernels:
    """What the metrics need of the run: processes, sizes and how often."""

    def __init__(self, bench):
        self.bench = bench
        # The working set: of what a contender reads, far over the last-level cache, or in L2.
        self.dram_bytes = (4 if bench.quick else 160) << 20
        self.l2_bytes = 256 << 10
        self.isas = bench.isas()

    def sketch(self, name, profile, isa, **options):
        return Entry(f"{profile} {isa}", self.bench.core, name,
                     {"profile": profile, "isa": isa, **options})

    def exact_scores(self, **options):
        """Every exact contender there is, on one core."""
        bench = self.bench
        entries = [Entry("own exact bf16", bench.core, "exact.score", options),
                   Entry("OpenBLAS fp32", bench.core, "openblas.score", options),
                   Entry("oneDNN bf16", bench.core, "onednn.score", options)]
        return entries + [Entry("PyTorch bf16", bench.torch, "torch.score", options)]

    def run(self, entries):
        return self.bench.run(entries)


def baselines(entries, results):
    """{label: median} of entries, or why one is not here."""
    return {entry.label: results[entry.label].absent or results[entry.label].median
            for entry in entries}


def _stream(kernels, **options):
    return Entry("streaming read", kernels.bench.core, "stream.read", options)


def scores(kernels, metric, queries, *, bars, others=None, bytes_=None):
    """score.dram.qN: keys in order in 256-token blocks, all ISA levels."""
    options = {"queries": queries, "bytes": bytes_ or kernels.dram_bytes, "block": 256}
    ours = [kernels.sketch("sketch.score", profile, isa, **options)
            for profile in PROFILES for isa in kernels.isas]
    peers = kernels.exact_scores(**options) if others is None else others
    read = _stream(kernels, bytes=options["bytes"])
    results = kernels.run(ours + peers + [read])
    found = []
    for entry in ours:
        result = results[entry.label]
        profile, isa = entry.options["profile"], entry.options["isa"]
        best = isa == kernels.isas[0]
        found.append(rows.make(
            metric, profile, "ns/key", result.median, baselines(peers, results), isa=isa,
            limit=("streaming read", results[read.label].median * result.bytes_per_unit),
            bar=bars.get(profile) if best else None,
            notes={"min": result.fastest, "bytes_per_key": result.bytes_per_unit}))
    return found


def score_dram_q4(kernels):
    return scores(kernels, "score.dram.q4", 4,
                  bars={"qjl": Bar(ratio=4.0, limit_share=0.6, unless_at_most=2.4),
                        "qjl3p": Bar(ratio=3.5)})


def score_dram_q1(kernels):
    return scores(kernels, "score.dram.q1", 1,
                  bars={profile: Bar(limit_share=0.9) for profile in PROFILES})


def score_dram_q8(kernels):
    return scores(kernels, "score.dram.q8", 8,
                  bars={profile: Bar(ratio=4.5) for profile in PROFILES})


def score_l2_q4(kernels):
    return scores(kernels, "score.l2.q4", 4, bars={}, bytes_=kernels.l2_bytes)


METRICS = {
    "score.dram.q4": score_dram_q4,
    "score.dram.q1": score_dram_q1,
    "score.dram.q8": score_dram_q8,
    "score.l2.q4": score_l2_q4,
}
