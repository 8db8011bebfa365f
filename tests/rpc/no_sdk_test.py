#!/usr/bin/env python3
"""Talks to a real sketchkvd with code made from the proto files alone, and checks how it starts,
serves, reflects and stops. Exits 77 (skipped) where grpcio or xxhash for Python are missing."""
import argparse
import ctypes
import os
import pathlib
import re
import signal
import struct
import subprocess
import sys
import tempfile
import time

try:
    import grpc
    import xxhash
except ImportError as error:
    print(f"skipped: {error} (packages python3-grpcio and python3-xxhash)")
    sys.exit(77)

HEALTH_PROTO = """
syntax = "proto3";
package grpc.health.v1;
message HealthCheckRequest { string service = 1; }
message HealthCheckResponse { int32 status = 1; }
service Health {
  rpc Check(HealthCheckRequest) returns (HealthCheckResponse);
  rpc Watch(HealthCheckRequest) returns (stream HealthCheckResponse);
}
"""


def generate(proto, plugin, out):
    health = out / "sketchkv_health_check.proto"
    health.write_text(HEALTH_PROTO)
    sources = [str(path) for path in sorted(proto.glob("sketchkv/v1/*.proto"))]
    subprocess.run(
        ["protoc", f"-I{proto}", f"-I{out}", f"--python_out={out}", f"--grpc_out={out}",
         f"--plugin=protoc-gen-grpc={plugin}", *sources, str(health)], check=True)
    sys.path.insert(0, str(out))


def end_with_parent():
    """A failed check must not leave a server behind: PR_SET_PDEATHSIG is 1."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


class Server:
    def __init__(self, binary, directory, *flags):
        self.port_file = pathlib.Path(directory) / f"port{time.monotonic_ns()}"
        self.process = subprocess.Popen(
            [binary, "--listen", "127.0.0.1:0", "--port-file", str(self.port_file),
             "--host-bytes", "64MiB", "--log-level", "warn", *flags],
            preexec_fn=end_with_parent)
        deadline = time.monotonic() + 30
        while not self.port_file.exists():
            assert self.process.poll() is None, "the server ended at once"
            assert time.monotonic() < deadline, "the server wrote no port file"
            time.sleep(0.02)
        self.channel = grpc.insecure_channel(f"127.0.0.1:{self.port_file.read_text().strip()}")

    def stop(self, timeout=20):
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout)


def check_health(channel, service):
    import sketchkv_health_check_pb2 as messages
    import sketchkv_health_check_pb2_grpc as stubs
    answer = stubs.HealthStub(channel).Check(
        messages.HealthCheckRequest(service=service), timeout=10)
    assert answer.status == 1, answer


def watch_health(channel):
    import sketchkv_health_check_pb2 as messages
    import sketchkv_health_check_pb2_grpc as stubs
    watch = stubs.HealthStub(channel).Watch(messages.HealthCheckRequest(), timeout=60)
    assert next(watch).status == 1
    return watch


def put_get_attend(channel):
    from sketchkv.v1 import attention_pb2, attention_pb2_grpc, cache_pb2, cache_pb2_grpc
    from sketchkv.v1 import codec_pb2, models_pb2, models_pb2_grpc, types_pb2
    layout = types_pb2.KvLayout(num_layers=1, num_kv_heads=1, head_dim=16, value_dim=16,
                                block_tokens=4, key_dtype=types_pb2.DTYPE_FP32,
                                value_dtype=types_pb2.DTYPE_FP32)
    model = models_pb2_grpc.ModelsStub(channel).RegisterModel(
        models_pb2.RegisterModelRequest(name="script", layout=layout,
                                        profiles=[types_pb2.ProfileRequest(name="raw")]), timeout=10)
    assert model.slot_bytes % 64 == 0

    # One block whose keys are all zero: attention is the mean of the values, lse is log(4).
    values = [[float(t)] * 16 for t in range(4)]
    payload = struct.pack("<64f", *[0.0] * 64) + b"".join(struct.pack("<16f", *v) for v in values)
    part = codec_pb2.PartLayout(num_tokens=4, raw_order=types_pb2.RAW_ORDER_NHD)
    block = b"0123456789abcdef"
    cache = cache_pb2_grpc.CacheStub(channel)
    acks = list(cache.Put(iter([cache_pb2.PutRequest(
        request_id=1, header=cache_pb2.PutHeader(model="script", block_hash=block, part=part),
        checksum=xxhash.xxh3_64_intdigest(payload), payload=payload)]), timeout=10))
    assert len(acks) == 1 and acks[0].status.code == 0 and acks[0].sealed, acks

    found = cache.Lookup(cache_pb2.LookupRequest(model="script", block_hashes=[block],
                                                 lease_ttl_ms=1000), timeout=10)
    assert found.num_blocks == 1 and found.num_tokens == 4 and found.lease_id != 0, found
    got = list(cache.Get(iter([cache_pb2.GetRequest(
        request_id=2, model="script", block_hash=block,
        format=codec_pb2.RawFormat(dtype=types_pb2.DTYPE_FP32,
                                   raw_order=types_pb2.RAW_ORDER_NHD))]), timeout=10))
    assert b"".join(chunk.payload for chunk in got) == payload

    answer = attention_pb2_grpc.AttentionStub(channel).Attend(attention_pb2.AttentionRequest(
        model="script", queries_per_kv_head=1,
        items=[attention_pb2.AttentionItem(lease_id=found.lease_id, num_query_tokens=1)],
        queries=struct.pack("<16f", *[1.0] * 16)), timeout=10)
    floats = struct.unpack("<17f", answer.payload)
    assert all(abs(x - 1.5) < 1e-5 for x in floats[:16]), floats
    assert abs(floats[16] - 1.3862943) < 1e-5, floats
    cache.ReleaseLease(cache_pb2.ReleaseLeaseRequest(lease_id=found.lease_id), timeout=10)


def services_by_reflection(channel):
    """The raw method: a ServerReflectionRequest with list_services = 7, as bytes."""
    call = channel.stream_stream("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
                                 request_serializer=lambda b: b, response_deserializer=lambda b: b)
    return next(iter(call(iter([b"\x3a\x00"]), timeout=10)))


def expect_refused(binary, *flags):
    ended = subprocess.run([binary, *flags], capture_output=True, text=True, timeout=30)
    assert ended.returncode != 0, flags
    return ended.stderr


def check_payload_fields():
    """A message with payload has it in one bytes field, number 15, written last."""
    from sketchkv.v1 import attention_pb2, cache_pb2, codec_pb2, models_pb2
    checked = 0
    for module in (attention_pb2, cache_pb2, codec_pb2, models_pb2):
        for message in module.DESCRIPTOR.message_types_by_name.values():
            numbers = {field.name: field.number for field in message.fields}
            payload = [name for name in numbers if name in ("payload", "queries")]
            if not payload:
                continue
            assert [numbers[name] for name in payload] == [15], message.full_name
            assert max(numbers.values()) == 15, message.full_name
            own = [f.name for f in message.fields if f.type == f.TYPE_BYTES]
            assert own == payload, message.full_name
            checked += 1
    assert checked == 10, checked


def check_flags_are_documented(binary, readme):
    """The table of flags in the README and the flags the server knows are the same."""
    text = subprocess.run([binary, "--help"], capture_output=True, text=True, check=True).stdout
    known = set(re.findall(r"(--[a-z][a-z-]*)", text)) - {"--help", "--version"}
    documented = set(re.findall(r"^\| `(--[a-z-]+)` \|", readme.read_text(), re.MULTILINE))
    assert known == documented, known ^ documented


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--server", required=True)
    parser.add_argument("--proto", required=True, type=pathlib.Path)
    parser.add_argument("--plugin", required=True)
    parser.add_argument("--readme", required=True, type=pathlib.Path)
    options = parser.parse_args()
    check_flags_are_documented(options.server, options.readme)
    os.environ.pop("http_proxy", None)
    with tempfile.TemporaryDirectory() as directory:
        generate(options.proto, options.plugin, pathlib.Path(directory))

        check_payload_fields()
        plain = Server(options.server, directory)
        check_health(plain.channel, "")
        check_health(plain.channel, "sketchkv")
        put_get_attend(plain.channel)
        try:
            answer = services_by_reflection(plain.channel)
            raise AssertionError(f"reflection is served without its flag: {answer}")
        except grpc.RpcError as error:
            assert error.code() == grpc.StatusCode.UNIMPLEMENTED, error
        taken = f"127.0.0.1:{plain.port_file.read_text().strip()}"
        assert taken in expect_refused(options.server, "--listen", taken)
        plain.channel.close()
        assert plain.stop() == 0, "SIGTERM is a clean exit"

        open_server = Server(options.server, directory, "--reflection", "--isa", "scalar")
        assert b"sketchkv.v1.Cache" in services_by_reflection(open_server.channel)
        # A call under way at SIGTERM ends with a code, and the server goes.
        from sketchkv.v1 import cache_pb2, cache_pb2_grpc
        watch = cache_pb2_grpc.CacheStub(open_server.channel).Watch(cache_pb2.WatchRequest())
        watch.initial_metadata()
        health = watch_health(open_server.channel)
        began = time.monotonic()
        assert open_server.stop() == 0
        assert time.monotonic() - began < 5, "streams without work do not hold the server"
        assert next(health).status == 2, "not serving before it goes"
        try:
            next(watch)
            raise AssertionError("a watch outlived its server")
        except grpc.RpcError as error:
            assert error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED), error

        assert "--insecure" in expect_refused(options.server, "--listen", "0.0.0.0:0")
        assert "no-such-isa" in expect_refused(options.server, "--isa", "no-such-isa")
    print("ok")


if __name__ == "__main__":
    main()
