#!/usr/bin/env bash
# Usage: tests/bench.sh [--json FILE] [--only PATTERN] [--quick]
#        tests/bench.sh --gpu [--binaries DIR] [--official-qjl PATH] [the same]
# Measures the kernels and the service against what people would use instead, side by side on this
# machine, and prints one table: metric, ours, baseline, ratio, share of the limit, bar. What each
# metric means: tests/bench/README.md.
#   --json FILE     one JSON object a row, points of the curves included (tests/bench/plots.py)
#   --only PATTERN  only metrics whose name matches the regular expression
#   --quick         every path on little data, under a minute; its figures mean nothing
#   --gpu           the kernels for GPUs, on the first card there is; without one every row says so
#   --binaries DIR  where sketchkv_bench_gpu lies; nothing is installed or built, so that a machine
#                   with no more than a card, Python, NumPy and PyTorch will do
#   --official-qjl PATH
#                   a checkout of github.com/amirzandieh/QJL, whose kernels are built if need be
# Installs the packages it needs (and, where pip reaches it, faiss-cpu into a virtual environment in
# the build folder) and builds what it calls, unless SKETCHKV_BUILD names the folder of a build that
# has it in bin/: then nothing is installed, and what is not here is left out with a reason. Exit
# status: 0, whether bars hold or not; 1 when a contender failed; 2 for bad arguments. Never changes
# directory: paths among the arguments stay the caller's.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)

say() { printf '[%4d s] %s\n' "$SECONDS" "$*" >&2; }

fail() {
  printf 'bench: error: %s\n' "$*" >&2
  exit 1
}

refuse() {
  printf 'bench: error: %s\nusage: %s\n' "$*" \
    'tests/bench.sh [--gpu [--binaries DIR] [--official-qjl PATH]] [--json FILE] [--only PATTERN]
                      [--quick]' >&2
  exit 2
}

# check_arguments ARGUMENT...: before anything is installed or built. Sets gpu and binaries.
check_arguments() {
  gpu='' binaries='' official=''
  while [[ $# -gt 0 ]]; do
    case $1 in
      --quick) shift ;;
      --gpu)
        gpu=yes
        shift
        ;;
      --json | --only | --binaries | --official-qjl)
        [[ $# -ge 2 && -n $2 && $2 != --* ]] || refuse "$1 needs a value"
        case $1 in
          --json)
            [[ ! -d $2 && -d $(dirname -- "$2") ]] ||
              refuse "--json $2: not a file that can be made"
            ;;
          --binaries)
            [[ -x $2/sketchkv_bench_gpu ]] || refuse "--binaries $2: no sketchkv_bench_gpu there"
            binaries=$2
            ;;
          --official-qjl)
            [[ -d $2/qjl_kernel ]] || refuse "--official-qjl $2: no folder qjl_kernel there"
            official=$2
            ;;
        esac
        shift 2
        ;;
      *) refuse "no such argument: $1" ;;
    esac
  done
  [[ -n $gpu || -z $binaries$official ]] ||
    refuse "--binaries and --official-qjl go with --gpu"
}

# install_faiss FOLDER: a virtual environment with faiss-cpu; without one the metric says so.
install_faiss() {
  [[ ! -e $1/ready ]] || return 0
  say "installing faiss-cpu into $1"
  if /usr/bin/python3 -m venv "$1" >&2 && "$1/bin/pip" -q install 'faiss-cpu>=1.13' >&2; then
    touch "$1/ready"
  else
    say "faiss-cpu cannot be installed here; its contender is left out"
  fi
}

if [[ ${1:-} = --help || ${1:-} = -h ]]; then
  sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"
  exit 0
fi
check_arguments "$@"

target=sketchkv_benchmarks
[[ -z $gpu ]] || target=sketchkv_benchmarks_gpu
build=${SKETCHKV_BUILD:-}
if [[ -z $build && -z $binaries ]]; then
  build=$root/build/release
  bash "$root/deploy/install_packages.sh" bench >&2 || exit 1
  say "configuring $build"
  mkdir -p "$build" 2>/dev/null || true
  [[ -w $build ]] ||
    fail "$build cannot be written by user $(id -un); was it built by another user?"
  if command -v ccache >/dev/null; then export CMAKE_CXX_COMPILER_LAUNCHER=ccache; fi
  cmake -S "$root" --preset release --log-level=NOTICE >&2 || fail "configuring failed, see above"
  say "building $target, $(nproc) jobs"
  cmake --build "$build" --target "$target" --parallel "$(nproc)" >&2 ||
    fail "the build failed, see above"
  [[ -n $gpu ]] || install_faiss "$build/bench-venv"
fi

# A PyTorch that knows of a card is seldom the system's.
python=/usr/bin/python3
if [[ -n $gpu ]] && python3 -c 'import numpy, importlib.util as u, sys
sys.exit(not u.find_spec("torch"))' 2>/dev/null; then
  python=python3
fi

# No bytecode is left in the tree.
export PYTHONDONTWRITEBYTECODE=1
exec "$python" "$root/tests/bench/main.py" --build "$build" "$@"
