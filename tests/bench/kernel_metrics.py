"""Metrics of the kernels: on one core, but for score.threads."""

import rows
from contest import Entry
from rows import Bar

PROFILES = ("qjl", "qjl3p")  # 256 sign bits; the default profile


class Kernels:
    """What the metrics need of a run: contenders and sizes."""

    def __init__(self, bench):
        self.bench = bench
        # The working set, of what a contender reads: far over the last-level cache, or in L2.
        self.dram_bytes = (4 if bench.quick else 160) << 20
        self.l2_bytes = 256 << 10
        self.isas = bench.isas()

    def run(self, entries):
        return self.bench.run(entries)

    def sketches(self, name, profiles=PROFILES, **options):
        """The product's own, every profile at every ISA level."""
        return [Entry(f"{profile} {isa}", self.bench.core, name,
                      {"profile": profile, "isa": isa, **options})
                for profile in profiles for isa in self.isas]

    def exact_scores(self, **options):
        """Every exact contender there is, on one core."""
        bench = self.bench
        return [Entry("own exact bf16", bench.core, "exact.score", options),
                Entry("OpenBLAS fp32", bench.core, "openblas.score", options),
                Entry("oneDNN bf16", bench.core, "onednn.score", options),
                Entry("PyTorch bf16", bench.torch, "torch.score", options)]

    def exact_attends(self, **options):
        return [Entry("own exact bf16", self.bench.core, "exact.attend", options),
                Entry("PyTorch bf16", self.bench.torch, "torch.attend", options)]

    def stream(self, **options):
        return Entry("streaming read", self.bench.core, "stream.read", options)

    def copy(self, **options):
        return Entry("plain copy", self.bench.core, "stream.copy", options)


def baselines(entries, results):
    """{label: median} of entries, or why one is not here."""
    return {entry.label: results[entry.label].absent or results[entry.label].median
            for entry in entries}


def _fastest(entry, peers, results, convert=float):
    """Of the best repetitions, for rows.make."""
    there = [peer.label for peer in peers if not results[peer.label].absent]
    return {None: convert(results[entry.label].fastest),
            **{label: convert(results[label].fastest) for label in there}}


def times(kernels, metric, unit, ours, peers, *, bars, read=None):
    """Rows of a time a unit of work. `bars`: {profile: Bar}, of the best ISA level; `read`: the
    streaming read in the same contest."""
    results = kernels.run(ours + peers + ([read] if read else []))
    found = []
    for entry in ours:
        result = results[entry.label]
        profile, isa = entry.options["profile"], entry.options["isa"]
        limit = None
        if read:
            limit = read.label, results[read.label].median * result.bytes_per_unit
        found.append(rows.make(
            metric, profile, unit, result.median, baselines(peers, results), isa=isa, limit=limit,
            bar=bars.get(profile) if isa == kernels.isas[0] else None,
            fastest=_fastest(entry, peers, results),
            notes={"bytes_per_unit": result.bytes_per_unit}))
    return found


def scores(kernels, metric, queries, bars, bytes_=None):
    """Keys in order, in 256-token blocks."""
    options = {"queries": queries, "bytes": bytes_ or kernels.dram_bytes}
    return times(kernels, metric, "ns/key", kernels.sketches("sketch.score", **options),
                 kernels.exact_scores(**options), bars=bars,
                 read=kernels.stream(bytes=options["bytes"]))


def _both(bar):
    return {profile: bar for profile in PROFILES}


def score_dram_q4(kernels):
    return scores(kernels, "score.dram.q4", 4,
                  {"qjl": Bar(ratio=4.0, limit_share=0.6, unless_at_most=2.4),
                   "qjl3p": Bar(ratio=3.5)})


def score_dram_q1(kernels):
    return scores(kernels, "score.dram.q1", 1, _both(Bar(limit_share=0.9)))


def score_dram_q8(kernels):
    return scores(kernels, "score.dram.q8", 8, _both(Bar(ratio=4.5)))


def score_l2_q4(kernels):
    return scores(kernels, "score.l2.q4", 4, {}, kernels.l2_bytes)


def score_threads_q1(kernels):
    """All cores, each with a share of the keys."""
    bench = kernels.bench
    options = {"queries": 1, "bytes": kernels.dram_bytes, "threads": bench.cpus}
    ours = [Entry(profile, bench.all_cores, "sketch.score",
                  {"profile": profile, "isa": kernels.isas[0], **options}) for profile in PROFILES]
    peers = [Entry("own exact bf16", bench.all_cores, "exact.score", options),
             Entry("OpenBLAS fp32", bench.all_cores, "openblas.score", options),
             Entry("oneDNN bf16", bench.all_cores, "onednn.score", options),
             Entry("PyTorch bf16", bench.torch_all_cores, "torch.score", options)]
    read = Entry("streaming read", bench.all_cores, "stream.read",
                 {"bytes": kernels.dram_bytes, "threads": bench.cpus})
    return times(kernels, "score.threads.q1", "ns/key", ours, peers,
                 bars=_both(Bar(limit_share=0.8)), read=read)


def score_slots(kernels):
    """16-token blocks; a cell of one head every eight, as the heads of a layer lie in a slot."""
    isa = kernels.isas[0]
    found = []
    for profile in PROFILES:
        options = {"profile": profile, "isa": isa, "queries": 4, "block": 16,
                   "bytes": kernels.dram_bytes}
        core = kernels.bench.core
        ours = [Entry("shuffled slots", core, "sketch.score",
                      {**options, "stride": 8, "shuffled": 1})]
        peers = [Entry("contiguous, in order", core, "sketch.score", options)]
        found += times(kernels, "score.slots", "ns/key", ours, peers,
                       bars={profile: Bar(ratio=0.85)})
    return found


def score_peer_q4(kernels):
    """256-bit codes, in L2 and from DRAM."""
    found = []
    for place, size in (("l2", kernels.l2_bytes), ("dram", kernels.dram_bytes)):
        core = kernels.bench.core
        peers = [Entry("Faiss RaBitQFastScan", kernels.bench.faiss, "faiss.score",
                       {"bytes": size}),
                 Entry("bit planes, 4-bit query", core, "popcount.score",
                       {"bytes": size, "planes": 4}),
                 Entry("bit planes, 8-bit query", core, "popcount.score",
                       {"bytes": size, "planes": 8})]
        ours = kernels.sketches("sketch.score", ("qjl",), queries=4, bytes=size)
        for row in times(kernels, "score.peer.q4", "ns/code", ours, peers,
                         bars={"qjl": Bar(ratio=1.5)}, read=kernels.stream(bytes=size)):
            found.append({**row, "variant": f"qjl {place}"})
    return found


def attend_dram_q4(kernels):
    options = {"queries": 4, "bytes": kernels.dram_bytes}
    return times(kernels, "attend.dram.q4", "ns/key", kernels.sketches("sketch.attend", **options),
                 kernels.exact_attends(**options), bars=_both(Bar(ratio=4.0)),
                 read=kernels.stream(bytes=kernels.dram_bytes))


def _rates(kernels, metric, name, peers, bar):
    """Rows of raw bytes a second, of the codec at all levels."""
    ours = kernels.sketches(name, bytes=kernels.dram_bytes)
    copy = kernels.copy(bytes=kernels.dram_bytes)
    results = kernels.run(ours + peers + [copy])
    found = []
    for entry in ours:
        isa = entry.options["isa"]
        rates = {label: time if isinstance(time, str) else 1 / time
                 for label, time in baselines(peers, results).items()}
        found.append(rows.make(
            metric, entry.options["profile"], "GB/s", 1 / results[entry.label].median, rates,
            isa=isa, limit=(copy.label, 1 / results[copy.label].median),
            bar=bar if isa == kernels.isas[0] else None, higher_is_better=True,
            fastest=_fastest(entry, peers, results, lambda time: 1 / time)))
    return found


def encode_kv(kernels):
    official = Entry("official QJL on OpenBLAS", kernels.bench.core, "qjl.encode",
                     {"bytes": kernels.dram_bytes})
    return _rates(kernels, "encode.kv", "codec.encode", [official], Bar(ratio=10, at_least=3))


def decode_kv(kernels):
    return _rates(kernels, "decode.kv", "codec.decode", [], Bar(at_least=3))


def _curve(kernels, metric, ours_name, exact_name):
    """Time of one call for one kv head with 4 queries against the length of its context. Each call
    finds other tokens, so that none are in a cache."""
    found = []
    for tokens in (1024, 4096) if kernels.bench.quick else [1024 << n for n in range(0, 9)]:
        options = {"queries": 4, "bytes": kernels.dram_bytes, "context": tokens}
        core = kernels.bench.core
        ours = [Entry(profile, core, ours_name,
                      {"profile": profile, "isa": kernels.isas[0], **options})
                for profile in PROFILES]
        peers = [Entry("own exact bf16", core, exact_name, options)]
        results = kernels.run(ours + peers)
        microseconds = {label: result.median * tokens / 1000 for label, result in results.items()}
        for entry in ours:
            found.append(rows.make(
                f"curve.{metric}.{tokens}", entry.label, "us", microseconds[entry.label],
                {peers[0].label: microseconds[peers[0].label]}, isa=kernels.isas[0],
                notes={"tokens": tokens}))
    return found


def curve_score(kernels):
    return _curve(kernels, "score", "sketch.score", "exact.score")


def curve_attend(kernels):
    return _curve(kernels, "attend", "sketch.attend", "exact.attend")


def memory_overhead(kernels):
    """Resident bytes of a pool over the exact size of its slots."""
    blocks = 20000 if kernels.bench.quick else 1000000
    entry = Entry("pool", kernels.bench.all_cores, "pool.memory", {"blocks": blocks})
    result = kernels.bench.run([entry], rounds=1)[entry.label]
    each = None if result.absent else result.median
    share = None if result.absent else 100 * each / result.bytes_per_unit
    found = []
    for variant, unit, value, most in (("index, slabs, allocator", "B/block", each, 200),
                                       ("share of the slot", "%", share, 3)):
        row = rows.make("memory.overhead", variant, unit, value, {}, bar=Bar(at_most=most),
                        notes={"slot_bytes": result.bytes_per_unit, "blocks": blocks})
        if result.absent:
            row["absent"]["memory.overhead"] = result.absent
        found.append(row)
    return found


METRICS = {
    "score.dram.q4": score_dram_q4,
    "score.dram.q1": score_dram_q1,
    "score.dram.q8": score_dram_q8,
    "score.threads.q1": score_threads_q1,
    "score.l2.q4": score_l2_q4,
    "score.slots": score_slots,
    "score.peer.q4": score_peer_q4,
    "attend.dram.q4": attend_dram_q4,
    "encode.kv": encode_kv,
    "decode.kv": decode_kv,
    "curve.score": curve_score,
    "curve.attend": curve_attend,
    "memory.overhead": memory_overhead,
}
