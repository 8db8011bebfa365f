"""Metrics of the service end to end, on loopback; nothing is pinned."""

import rows
from contest import Entry
from rows import Bar

LAYERS, HEADS, DIM = 32, 8, 128  # Llama-3.1-8B, bf16
TABLE_BLOCKS = (16, 256)
ATTEND_BLOCK, ATTEND_LAYERS = 64, 2
QUERY_BYTES, ANSWER_BYTES = 32 * DIM * 4, 32 * DIM * 4 + 32 * 4
LIMIT = "bare gRPC stream"


def _raw_bytes(tokens):
    return tokens * LAYERS * HEADS * DIM * 2 * 2


def _slot_bytes(bench, options):
    entry = Entry("blocks", bench.service, "sdk.blocks", options)
    return int(bench.run([entry], rounds=1)["blocks"].bytes_per_unit)


def _throughput(bench, metric, name, redis_name, *, travels, alone=None, **options):
    """Raw bytes a second against block size: a row of the table for each of TABLE_BLOCKS, and a
    point of a curve for all. `travels`: (bytes up, bytes down) of a block of so many raw and
    encoded bytes. `alone`: the contender that does the same work without a service."""
    found = []
    for tokens in TABLE_BLOCKS if bench.quick else (16, 32, 64, 128, 256):
        raw = _raw_bytes(tokens)
        items = max(((64 << 20) if bench.quick else (128 << 20)) // raw, 1)
        ours = {"server": bench.servers.sketchkvd(), "block": tokens, "layers": LAYERS,
                "items": items, **options}
        up, down = travels(raw, _slot_bytes(bench, ours))
        path, port = bench.servers.redis()
        stored = {"items": items, "bytes": raw}
        entries = [
            Entry("sketchkv", bench.service, name, ours),
            Entry(LIMIT, bench.service, "bare.stream",
                  {"server": bench.servers.bare(), "items": items, "up": up, "down": down,
                   "logical": raw}),
            Entry("Redis, Unix socket", bench.service, redis_name, {**stored, "server": path}),
            Entry("Redis, TCP", bench.service, redis_name, {**stored, "server": port})]
        if alone:
            entries.append(Entry("alone", bench.all_cores, alone,
                                 {"block": tokens, "bytes": items * raw, "threads": bench.cpus}))
        results = bench.run(entries)
        redis = {entry.label: results[entry.label].absent or 1 / results[entry.label].median
                 for entry in entries[2:4]}
        fastest = {label: 1 / result.fastest for label, result in results.items() if result.times}
        row = rows.make(
            metric, f"{tokens}-token blocks", "GB/s", 1 / results["sketchkv"].median, redis,
            limit=(LIMIT, 1 / results[LIMIT].median), higher_is_better=True,
            fastest={**fastest, None: fastest["sketchkv"]},
            bar=Bar(ratio=1.0, limit_share=0.85) if tokens in TABLE_BLOCKS else None,
            notes={"block_tokens": tokens, "raw_bytes": raw, "bytes_up": up, "bytes_down": down,
                   "codec_alone": 1 / results["alone"].median if alone else None})
        if tokens in TABLE_BLOCKS:
            found.append(row)
        found.append({**row, "metric": f"curve.{metric}.{tokens}", "bar": None, "holds": None})
    return found


def put_grpc(bench):
    return _throughput(bench, "put.grpc", "sdk.put", "redis.set", alone="codec.encode",
                       travels=lambda raw, encoded: (raw, 0))


def get_grpc_encoded(bench):
    return _throughput(bench, "get.grpc.encoded", "sdk.get", "redis.get", format="encoded",
                       travels=lambda raw, encoded: (0, encoded))


def get_grpc_bf16(bench):
    return _throughput(bench, "get.grpc.bf16", "sdk.get", "redis.get", format="bf16",
                       alone="codec.decode",
                       travels=lambda raw, encoded: (0, raw))


def _same_host(bench, metric, name, alone, bar, **options):
    """Raw bytes a second over shared memory, against the same over gRPC; the limit is the codec
    alone on all cores."""
    found = []
    for tokens in TABLE_BLOCKS:
        raw = _raw_bytes(tokens)
        items = max(((64 << 20) if bench.quick else (128 << 20)) // raw, 1)
        shape = {"server": bench.servers.sketchkvd(), "block": tokens, "layers": LAYERS,
                 "items": items, **options}
        ours = Entry("shared memory", bench.service, name, {**shape, "transport": "shm"})
        peer = Entry("over gRPC", bench.service, name, shape)
        codec = Entry("codec alone", bench.all_cores, alone,
                      {"block": tokens, "bytes": items * raw, "threads": bench.cpus})
        copy = Entry("plain copy", bench.core, "stream.copy", {"bytes": items * raw})
        results = bench.run([ours, peer, codec, copy])
        absent = results[ours.label].absent
        row = rows.make(
            metric, f"{tokens}-token blocks", "GB/s",
            None if absent else 1 / results[ours.label].median,
            {peer.label: 1 / results[peer.label].median},
            limit=(codec.label, 1 / results[codec.label].median), bar=bar, higher_is_better=True,
            notes={"block_tokens": tokens, "plain_copy": 1 / results[copy.label].median})
        if absent:
            row["absent"][metric] = absent
        found.append(row)
    return found


def put_shm(bench):
    return _same_host(bench, "put.shm", "sdk.put", "codec.encode",
                      Bar(ratio=4.0, limit_share=0.7))


def get_shm(bench):
    return _same_host(bench, "get.shm", "sdk.get", "codec.decode", None, format="bf16")


def _attend_entries(bench, tokens):
    shape = {"tokens": tokens, "block": ATTEND_BLOCK, "layers": ATTEND_LAYERS}
    return [Entry("sketchkv", bench.service, "sdk.attend",
                  {"server": bench.servers.sketchkvd(), **shape}),
            Entry("ping", bench.service, "bare.ping",
                  {"server": bench.servers.bare(), "up": QUERY_BYTES, "down": ANSWER_BYTES}),
            Entry("kernels", bench.service, "kernel.layer", {"threads": bench.cpus, **shape})]


def attend_shm(bench):
    """Latency of a call whose queries and outputs lie in shared memory, against the same over gRPC;
    the limit is the codec alone on all cores."""
    found = []
    for sequences, rounds in ((1, 300), (64, 60)):
        shape = {"tokens": 1024, "block": ATTEND_BLOCK, "layers": ATTEND_LAYERS,
                 "sequences": sequences}
        moved = sequences * (QUERY_BYTES + ANSWER_BYTES)
        ours = Entry("shared memory", bench.service, "sdk.attend",
                     {"server": bench.servers.sketchkvd(), "transport": "shm", **shape})
        peer = Entry("over gRPC", bench.service, "sdk.attend",
                     {"server": bench.servers.sketchkvd(), **shape})
        kernels = Entry("codec alone", bench.service, "kernel.layer",
                        {"threads": bench.cpus, **shape})
        copy = Entry("plain copy", bench.core, "stream.copy", {"bytes": moved})
        # The limits apart: a call after 15 ms of another program's copying would find its threads cold.
        results = bench.run([ours, peer], rounds=5 if bench.quick else rounds)
        results.update(bench.run([kernels, copy]))
        absent = results[ours.label].absent
        fastest = {label: result.fastest / 1000 for label, result in results.items()
                   if result.times}
        row = rows.make(
            "attend.shm", f"{sequences} x 1k tokens", "us",
            None if absent else results[ours.label].median / 1000,
            {peer.label: results[peer.label].median / 1000},
            limit=(kernels.label, results[kernels.label].median / 1000),
            fastest={**fastest, None: fastest.get(ours.label)},
            notes={"sequences": sequences, "bytes": moved,
                   "plain_copy_us": results[copy.label].median * moved / 1000})
        if absent:
            row["absent"]["attend.shm"] = absent
        found.append(row)
    return found


def attend_rpc(bench):
    """Latency of one layer: busy, and after pauses."""
    found = []
    for tokens in (1024,) if bench.quick else (1024, 8192, 65536):
        entries = _attend_entries(bench, tokens)
        busy = bench.run(entries, rounds=5 if bench.quick else 300)
        ours, ping, kernels = (busy[label] for label in ("sketchkv", "ping", "kernels"))
        parts = (ping.median + kernels.median) / 1000
        context = f"{tokens // 1024}k tokens"
        notes = {"tokens": tokens, "ping_us": ping.median / 1000,
                 "kernels_us": kernels.median / 1000, "ping_p99_us": ping.percentile(0.99) / 1000,
                 "calls": len(ours.times)}
        found.append(rows.make("attend.rpc.p50", context, "us", ours.median / 1000,
                               {"ping + kernels": parts}, bar=Bar(ratio=0.8), notes=notes,
                               fastest={None: ours.fastest / 1000, "ping + kernels":
                                        (ping.fastest + kernels.fastest) / 1000}))
        idle = Entry("sketchkv", bench.service, "sdk.attend",
                     {**entries[0].options, "idle_ms": "1000,2000,1500,4000,1050,10000"})
        paused = bench.run([idle], rounds=1 if bench.quick else 12)["sketchkv"]
        found.append(rows.make(
            "attend.rpc.p99", context + ", after 1-10 s", "us", paused.percentile(0.99) / 1000,
            {"p99 busy": ours.percentile(0.99) / 1000}, bar=Bar(ratio=0.5),
            notes={"calls": len(paused.times), "idle_p50_us": paused.median / 1000}))
    return found


METRICS = {
    "put.grpc": put_grpc,
    "get.grpc.encoded": get_grpc_encoded,
    "get.grpc.bf16": get_grpc_bf16,
    "put.shm": put_shm,
    "get.shm": get_shm,
    "attend.shm": attend_shm,
    "attend.rpc": attend_rpc,
}
