"""Metrics of the service on the GPU tier, through gRPC and through CUDA IPC."""

import rows
from contest import Entry
from rows import Bar
from service_metrics import ANSWER_BYTES, QUERY_BYTES

PROFILE = "qjl3p"
ATTEND_BLOCK, PUT_BLOCKS = 64, (64, 256)  # tokens
LAYERS, HEADS, DIM = 32, 8, 128           # Llama-3.1-8B, bf16
# What travels with a call whose numbers lie on the card, up and down.
MESSAGE_BYTES = 256


def _absent(card, metric, variant, unit, bar):
    row = rows.make(metric, variant, unit, None, {}, bar=bar)
    row["absent"][metric] = card.absent
    return row


def _with_card(card, row):
    row["machine"] = f"{card.name}; {row['machine']}"
    row["notes"]["card"] = card.name
    return row


def service_gpu_attend_rpc(card):
    """One Attend over one layer by lease: microseconds more than a ping of the same payload and the
    kernel alone (gpu.attend.b1) take."""
    tokens = 1024 if card.bench.quick else 131072
    context = f"{tokens // 1024}k"
    paths = (("gRPC", "sdk.attend", QUERY_BYTES, ANSWER_BYTES, 100),
             ("CUDA IPC", "sdk.gpu.attend", MESSAGE_BYTES, MESSAGE_BYTES, 60))
    found = []
    for path, name, up, down, most in paths:
        variant, bar = f"{context}, {path}", Bar(at_most=most)
        if card.absent:
            found.append(_absent(card, "service.gpu.attend.rpc", variant, "us more", bar))
            continue
        bench = card.bench
        shape = {"tokens": tokens, "block": ATTEND_BLOCK, "profile": PROFILE, "layers": 1}
        results = bench.run([
            Entry("call", bench.service, name,
                  {"server": bench.servers.sketchkvd_on_gpu(), **shape}),
            Entry("ping", bench.service, "bare.ping",
                  {"server": bench.servers.bare(), "up": up, "down": down})],
            rounds=5 if bench.quick else 300)
        # Apart: a call after another program's kernels would wait for the card to change programs.
        results.update(bench.run([card.ours(
            "kernel", "gpu.attend.b1", PROFILE, tokens=tokens,
            sequences=card.layers(8 * 84 * tokens))]))
        call, ping, kernel = (results[label].median / 1000 for label in ("call", "ping", "kernel"))
        found.append(_with_card(card, rows.make(
            "service.gpu.attend.rpc", variant, "us more", call - ping - kernel, {}, bar=bar,
            notes={"tokens": tokens, "call_us": call, "ping_us": ping, "kernel_us": kernel})))
    return found


def service_gpu_put_ipc(card):
    """Puts from a client's memory on the card, GB of raw bytes a second; the limit is the kernel
    alone on the same rows (gpu.encode)."""
    found = []
    for tokens in PUT_BLOCKS:
        variant, bar = f"{tokens}-token blocks", Bar(limit_share=0.7)
        if card.absent:
            found.append(_absent(card, "service.gpu.put.ipc", variant, "GB/s", bar))
            continue
        bench = card.bench
        raw = tokens * LAYERS * HEADS * DIM * 2 * 2
        items = max(((64 << 20) if bench.quick else (2 << 30)) // raw, 1)
        kernel = card.ours("kernel", "gpu.encode", PROFILE, **card.large)
        results = bench.run([
            Entry("put", bench.service, "sdk.gpu.put",
                  {"server": bench.servers.sketchkvd_on_gpu(), "block": tokens, "layers": LAYERS,
                   "profile": PROFILE, "items": items}), kernel])
        # The kernel's bytes are rows and cells.
        token_bytes = results["kernel"].bytes_per_unit / (
            card.large["sequences"] * card.large["tokens"])
        rows_share = HEADS * DIM * 2 * 2 / token_bytes
        alone = results["kernel"].bytes_per_unit * rows_share / results["kernel"].median
        found.append(_with_card(card, rows.make(
            "service.gpu.put.ipc", variant, "GB/s", 1 / results["put"].median, {},
            limit=("kernel alone", alone), bar=bar, higher_is_better=True,
            notes={"block_tokens": tokens, "raw_bytes": raw, "items": items})))
    return found


METRICS = {
    "service.gpu.attend.rpc": service_gpu_attend_rpc,
    "service.gpu.put.ipc": service_gpu_put_ipc,
}
