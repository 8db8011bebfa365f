"""Number formats and files that the instrument shares: bf16, fp16, safetensors."""

import json
import struct

import numpy as np

_DTYPES = {"F16": np.float16, "F32": np.float32, "I64": np.int64}


def round_bf16(x):
    """float32 array of any shape -> the nearest bf16 values (ties to even), held as float32."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    rounded = (bits + (((bits >> 16) & 1) + 0x7FFF)) & np.uint32(0xFFFF0000)
    return rounded.view(np.float32)


def round_fp16(x):
    """Any float array -> the nearest fp16 values, held as float32."""
    return np.asarray(x).astype(np.float16).astype(np.float32)


def read_safetensors(path):
    """{name: array} of a safetensors file: u64 header length, JSON header, raw little-endian."""
    with open(path, "rb") as file:
        data = file.read()
    (header_bytes,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + header_bytes])
    body = 8 + header_bytes
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        begin, end = entry["data_offsets"]
        raw = np.frombuffer(data[body + begin : body + end], _DTYPES[entry["dtype"]])
        tensors[name] = raw.reshape(entry["shape"])
    return tensors


def write_safetensors(path, tensors):
    """Writes {name: float32 or int64 array}."""
    header, offset = {}, 0
    for name, tensor in tensors.items():
        header[name] = {
            "dtype": {"float32": "F32", "int64": "I64"}[tensor.dtype.name],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.nbytes],
        }
        offset += tensor.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors.values():
            np.ascontiguousarray(tensor).tofile(file)
