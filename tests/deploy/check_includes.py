"""Checks that the includes of the C++ sources follow the arrows of the house.

Usage: check_includes.py ROOT          prints every include against an arrow; exit status 1 if any
       check_includes.py --self-check  plants one violation of each rule and wants it reported
"""

import os
import re
import sys
import tempfile

RPC_TYPES = ("grpc/", "grpcpp/", "google/", "sketchkv/v1/")
BELOW_RPC = RPC_TYPES + ("prometheus/", "spdlog/")

# (folder, what of our own it may include, what else it may not). The first folder that matches a
# file is its rule; tests may include everything and have none. "sketchkv/v1/" is generated code,
# the rest of "sketchkv/" the client's public headers.
RULES = [
    ("kernels/base/", ("kernels/base/",), BELOW_RPC),
    ("kernels/", ("kernels/",), BELOW_RPC + ("thread", "future")),
    ("service/pool/", ("service/pool/", "kernels/base/"), BELOW_RPC),
    ("service/engine/", ("service/engine/", "service/pool/", "kernels/"), BELOW_RPC),
    ("service/metrics/", ("service/metrics/", "service/engine/", "service/pool/", "kernels/"),
     RPC_TYPES),
    ("service/shm/", ("service/shm/", "kernels/base/"), BELOW_RPC),
    ("service/rpc/", ("service/rpc/", "service/engine/", "service/pool/", "service/shm/",
                      "kernels/", "sketchkv/v1/"), ("prometheus/",)),
    ("service/", ("service/", "kernels/"), RPC_TYPES),
    ("client/cpp/include/", ("sketchkv/",), ("google/", "sketchkv/v1/")),
    ("client/", ("client/", "sketchkv/", "kernels/"), ("prometheus/",)),
]
EVERYWHERE = ("absl/synchronization/",)  # ThreadSanitizer cannot see into Debian's Abseil.
OWN = ("kernels/", "service/", "client/", "tests/", "sketchkv/")
INCLUDE = re.compile(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]')
SOURCE = (".h", ".cc", ".cu", ".cuh", ".inc")


def sources(root):
    """Yields the paths, relative to root, of the sources that have a rule."""
    for top in ("kernels", "service", "client"):
        for folder, _, names in os.walk(os.path.join(root, top)):
            for name in sorted(names):
                if name.endswith(SOURCE):
                    yield os.path.relpath(os.path.join(folder, name), root)


def as_root_path(root, path, included):
    """An include that is written relative to its file is judged by what it reaches."""
    beside = os.path.normpath(os.path.join(os.path.dirname(path), included))
    if not included.startswith(OWN) and os.path.isfile(os.path.join(root, beside)):
        return beside
    return included


def allowed(rule, included):
    _, may, may_not = rule
    if included.startswith(EVERYWHERE):
        return False
    if any(included == name or (name.endswith("/") and included.startswith(name))
           for name in may_not):
        return False
    return not included.startswith(OWN) or included.startswith(may)


def violations(root):
    """Returns ("path:line", included) for every include against an arrow, and the files seen."""
    found, seen = [], 0
    for path in sources(root):
        rule = next(rule for rule in RULES if path.startswith(rule[0]))
        seen += 1
        with open(os.path.join(root, path), encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                match = INCLUDE.match(line)
                if match and not allowed(rule, as_root_path(root, path, match.group(1))):
                    found.append((f"{path}:{number}", match.group(1)))
    return found, seen


# Of each file the first line is right and the second against an arrow.
PLANTED = {
    "kernels/base/a.h": ("kernels/base/b.h", "kernels/codec.h"),
    "kernels/a.cc": ("kernels/cpu/a.h", "service/pool/block.h"),
    "kernels/b.cc": ("vector", "client/cpp/a.h"),
    "kernels/cpu/c.cc": ("immintrin.h", "thread"),
    "kernels/cpu/d.cc": ("kernels/base/a.h", "sketchkv/v1/cache.pb.h"),
    "service/pool/a.cc": ("kernels/base/mutex.h", "kernels/codec.h"),
    "service/pool/b.cc": ("absl/status/status.h", "grpcpp/grpcpp.h"),
    "service/pool/c.cc": ("block.h", "../engine/a.cc"),
    "service/pool/d.cc": ("mutex", "absl/synchronization/mutex.h"),
    "service/engine/a.cc": ("service/pool/block.h", "service/rpc/a.h"),
    "service/engine/b.cc": ("kernels/codec.h", "google/protobuf/message.h"),
    "service/engine/c.cc": ("service/engine/a.h", "prometheus/counter.h"),
    "service/metrics/a.cc": ("prometheus/counter.h", "service/rpc/a.h"),
    "service/shm/a.cc": ("kernels/base/mutex.h", "service/pool/block.h"),
    "service/rpc/a.cc": ("sketchkv/v1/cache.grpc.pb.h", "service/metrics/a.h"),
    "service/rpc/b.cc": ("service/engine/a.h", "sketchkv/client.h"),
    "service/main.cc": ("service/rpc/server.h", "tests/testing/fake_clock.h"),
    "service/config.cc": ("service/config.h", "sketchkv/v1/models.pb.h"),
    "client/cpp/include/sketchkv/a.h": ("sketchkv/b.h", "kernels/layout.h"),
    "client/cpp/include/sketchkv/b.h": ("memory", "sketchkv/v1/types.pb.h"),
    "client/cpp/a.cc": ("sketchkv/v1/cache.pb.h", "service/engine/a.h"),
    "client/cpp/cli/a.cc": ("kernels/codec.h", "service/config.h"),
}


def self_check():
    with tempfile.TemporaryDirectory() as root:
        for path, lines in PLANTED.items():
            os.makedirs(os.path.dirname(os.path.join(root, path)), exist_ok=True)
            with open(os.path.join(root, path), "w", encoding="utf-8") as file:
                file.writelines(f'#include "{line}"\n' for line in lines)
        found, seen = violations(root)
    wanted = {(f"{path}:2", lines[1]) for path, lines in PLANTED.items()}
    for missed in sorted(wanted - set(found)):
        print(f"{missed[0]}: planted {missed[1]} was not reported")
    for wrong in sorted(set(found) - wanted):
        print(f"{wrong[0]}: {wrong[1]} was reported and is right")
    unbroken = {rule[0] for rule in RULES} - {
        next(rule[0] for rule in RULES if path.startswith(rule[0])) for path in PLANTED}
    print(f"{len(found)} of {len(wanted)} planted violations reported, rules without one: "
          f"{len(unbroken)}")
    return 0 if set(found) == wanted and seen == len(PLANTED) and not unbroken else 1


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    if sys.argv[1] == "--self-check":
        sys.exit(self_check())
    found, seen = violations(sys.argv[1])
    for where, included in found:
        print(f"{where}: may not include {included}")
    print(f"{seen} sources, {len(found)} includes against an arrow")
    sys.exit(1 if found or seen == 0 else 0)


if __name__ == "__main__":
    main()
