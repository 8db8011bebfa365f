#!/usr/bin/env bash
# Usage: deploy/quickstart.sh [arguments of "sketchkv demo"]
# From a bare Debian 12 to the demo: packages, a Release build of the server and the command line,
# then `sketchkv demo`, which starts its own sketchkvd on loopback. Needs root or sudo only while
# packages are missing. Never changes directory: paths among the arguments stay the caller's.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
build=$root/build/release

say() { printf '[%4d s] %s\n' "$SECONDS" "$*"; }

fail() {
  printf 'quickstart: error: %s\n' "$*" >&2
  exit 1
}

say "packages (deploy/packages.txt)"
bash "$root/deploy/install_packages.sh" build || exit 1

say "configuring $build"
mkdir -p "$build" 2>/dev/null || true
[[ -w $build ]] || fail "$build cannot be written by user $(id -un); was it built by another user?"
if command -v ccache >/dev/null; then export CMAKE_CXX_COMPILER_LAUNCHER=ccache; fi
cmake -S "$root" --preset release --log-level=NOTICE || fail "configuring failed, see above"

say "building sketchkvd and sketchkv, $(nproc) jobs"
cmake --build "$build" --target sketchkvd sketchkv_cli --parallel "$(nproc)" ||
  fail "the build failed, see above"

say "running sketchkv demo $*"
exec "$build/bin/sketchkv" demo "$@"
