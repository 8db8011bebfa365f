#!/usr/bin/env bash
# Usage: tests/run.sh [--fast] [ctest arguments, such as -R Pool]
# Installs what tests need, builds, and runs every suite even when one fails:
#   release      everything
#   asan         everything under ASan and UBSan, in short form (SKETCHKV_TEST_SHORT=1)
#   tsan-pool, tsan-engine   under TSan, in short form (gRPC is not instrumented)
# --fast runs release only. Ends with ctest's closing lines of each suite, release last; the exit
# status is 1 if a suite failed, and then the last line names it. The long forms of the sanitizer
# suites are the presets: ctest --preset asan.
set -uo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
jobs=$(nproc)
fast=0
if [[ ${1:-} = --fast ]]; then
  fast=1
  shift
fi
filter=("$@")
failed=()
summaries=$(mktemp -d)
trap 'rm -rf "$summaries"' EXIT

say() { printf '[%4d s] %s\n' "$SECONDS" "$*"; }

# Without detect_stack_use_after_return: g++ 12's stand-in stack holds 64-byte vectors unaligned
# (GCC bug 110027), so that AVX-512 code faults on it.
export ASAN_OPTIONS=strict_string_checks=1
export UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1
export TSAN_OPTIONS=halt_on_error=1:second_deadlock_stack=1
if command -v ccache >/dev/null; then
  export CMAKE_CXX_COMPILER_LAUNCHER=ccache CCACHE_BASEDIR=$root CCACHE_NOHASHDIR=1
fi
# The sanitizers of g++ 12 cannot map their shadow on kernels that randomise more address bits than
# Debian 12's; where the sandbox allows it, they (and test discovery in the build) run without.
steady=()
if setarch -R true 2>/dev/null; then steady=(setarch -R); fi

# run_suite NAME PRESET [FOLDER]: builds and tests FOLDER of the tree, or all of it.
run_suite() {
  local name=$1 preset=$2 folder=${3:-} build=$root/build/$2 none=error
  say "$name: configuring and building in build/$preset"
  if ! { cmake -S "$root" --preset "$preset" --log-level=NOTICE &&
    "${steady[@]}" cmake --build "$build" --target "${folder:+$folder/}all" -j "$jobs"; }; then
    echo "$name: the build failed" | tee "$summaries/$name"
    failed+=("$name")
    return
  fi
  # A suite without tests is a failure, unless a filter left nothing of a partial one.
  if [[ -n $folder && ${#filter[@]} -gt 0 ]]; then none=ignore; fi
  say "$name: testing, $jobs at a time"
  "${steady[@]}" ctest --test-dir "$build/$folder" -j "$jobs" --output-on-failure \
    --no-label-summary --no-tests="$none" "${filter[@]}" </dev/null 2>&1 |
    tee "$summaries/$name.log"
  [[ ${PIPESTATUS[0]} -eq 0 ]] || failed+=("$name")
  awk '/% tests passed, / { found = 1 } found; /^No tests were found/' "$summaries/$name.log" \
    >"$summaries/$name"
}

bash "$root/deploy/install_packages.sh" tests || exit 1

suites=(release)
run_suite release release
if [[ $fast = 0 ]]; then
  export SKETCHKV_TEST_SHORT=1
  suites=(tsan-pool tsan-engine asan release)
  run_suite asan asan
  run_suite tsan-pool tsan tests/pool
  run_suite tsan-engine tsan tests/engine
fi

say "done"
for name in "${suites[@]}"; do
  printf '\n== %s\n' "$name"
  grep -v '^$' "$summaries/$name"
done
if [[ ${#failed[@]} -gt 0 ]]; then
  echo "FAILED: ${failed[*]}"
  exit 1
fi
