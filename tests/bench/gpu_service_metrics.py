"""Metrics of the service on the GPU tier, through gRPC and through CUDA IPC.

Nothing drives the server here yet: what each row will compare, and its bar, stand here already.
"""

import rows
from rows import Bar


def _absent(card, metric, variant, unit, bar):
    row = rows.make(metric, variant, unit, None, {}, bar=bar)
    row["absent"][metric] = card.absent or "nothing drives the GPU tier yet"
    return row


def service_gpu_attend_rpc(card):
    """One Attend over one layer and 128k tokens: microseconds more than a ping of the same payload
    and the kernel (gpu.attend.b1) take."""
    return [_absent(card, "service.gpu.attend.rpc", f"128k, {path}", "us more",
                    Bar(at_most=most))
            for path, most in (("gRPC", 100), ("CUDA IPC", 60))]


def service_gpu_put_ipc(card):
    """Puts from a client's memory on the card; the limit is the kernel alone (gpu.encode)."""
    return [_absent(card, "service.gpu.put.ipc", "", "GB/s", Bar(limit_share=0.7))]


METRICS = {
    "service.gpu.attend.rpc": service_gpu_attend_rpc,
    "service.gpu.put.ipc": service_gpu_put_ipc,
}
