#!/usr/bin/env bash
# Usage: tests/accuracy.sh [--json FILE] [--quick] [--plots DIR] [--only PATTERN] [--check]
# Measures every profile and every peer at exact effective bits: synthetic keys and values, a small
# real language model, needles among up to 128k keys, block sizes. Prints tables, and last the bars.
#   --json FILE     every number, one JSON object a line
#   --quick         every path on little data, under a minute
#   --plots DIR     error-bits.png and kl-bits.png
#   --only PATTERN  only codecs whose SECTION/NAME matches the regular expression; sections are
#                   synthetic, tiny-lm, needles, block-size
#   --check         exit status 1 when a bar does not hold
# Installs the packages it needs and builds the two executables it calls, unless SKETCHKV_BUILD
# names the folder of a build that has them in bin/. Exit status: 0; 1 when a measurement or a
# cross-check failed; 2 for bad arguments. Never changes directory: paths among the arguments stay
# the caller's.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)

say() { printf '[%4d s] %s\n' "$SECONDS" "$*" >&2; }

fail() {
  printf 'accuracy: error: %s\n' "$*" >&2
  exit 1
}

refuse() {
  printf 'accuracy: error: %s\nusage: %s\n' "$*" \
    'tests/accuracy.sh [--json FILE] [--quick] [--plots DIR] [--only PATTERN] [--check]' >&2
  exit 2
}

# check_arguments ARGUMENT...: before anything is installed or built.
check_arguments() {
  while [[ $# -gt 0 ]]; do
    case $1 in
      --quick | --check) shift ;;
      --json | --plots | --only)
        [[ $# -ge 2 && -n $2 && $2 != --* ]] || refuse "$1 needs a value"
        case $1 in
          --json)
            [[ ! -d $2 && -d $(dirname -- "$2") ]] ||
              refuse "--json $2: not a file that can be made"
            ;;
          --plots)
            [[ ! -e $2 || -d $2 ]] || refuse "--plots $2: there, but not a folder"
            ;;
        esac
        shift 2
        ;;
      *) refuse "no such argument: $1" ;;
    esac
  done
}

if [[ ${1:-} = --help || ${1:-} = -h ]]; then
  sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"
  exit 0
fi
check_arguments "$@"

build=${SKETCHKV_BUILD:-}
if [[ -z $build ]]; then
  build=$root/build/release
fi
bash "$root/deploy/install_packages.sh" accuracy >&2 || exit 1
if [[ -z ${SKETCHKV_BUILD:-} ]]; then
  say "configuring $build"
  mkdir -p "$build" 2>/dev/null || true
  [[ -w $build ]] ||
    fail "$build cannot be written by user $(id -un); was it built by another user?"
  if command -v ccache >/dev/null; then export CMAKE_CXX_COMPILER_LAUNCHER=ccache; fi
  cmake -S "$root" --preset release --log-level=NOTICE >&2 || fail "configuring failed, see above"
  say "building sketchkv_roundtrip and sketchkv, $(nproc) jobs"
  cmake --build "$build" --target sketchkv_roundtrip sketchkv_cli --parallel "$(nproc)" >&2 ||
    fail "the build failed, see above"
fi

# One process a core, each with one BLAS thread. No bytecode is left in the tree.
export OPENBLAS_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE=1
exec /usr/bin/python3 "$root/tests/accuracy/main.py" --build "$build" \
  --data "$root/tests/data/tiny-lm" --jobs "$(nproc)" "$@"
