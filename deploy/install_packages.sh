#!/usr/bin/env bash
# Usage: deploy/install_packages.sh build|accuracy|bench|tests|arm64
# Installs what is missing of deploy/packages.txt: the [build] group; that and [accuracy]; those and
# [bench]; [build], [accuracy] and [tests]; or [build] and [arm64], for which dpkg learns of that
# architecture.
# Asks dpkg what is there, so a second run touches neither apt nor the network nor sudo.
set -euo pipefail

list=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)/packages.txt
log=
as_root=()  # what a command needs before it to run as root

say() { printf '[%4d s] packages: %s\n' "$SECONDS" "$*"; }

fail() {
  printf 'packages: error: %s\n' "$@" >&2
  exit 1
}

# read_list GROUP: the names of [build] and of what else GROUP needs.
read_list() {
  local groups="[build] [$1]"
  case $1 in
    bench | tests) groups="$groups [accuracy]" ;;
  esac
  awk -v groups="$groups" '
    { sub(/#.*/, "") }
    /^\[/ { wanted = index(groups, $1); next }
    NF && wanted { print $1 }' "$list"
}

# find_missing NAME...: those that dpkg does not have as installed.
find_missing() {
  local installed native
  installed=$(dpkg-query -W -f '${binary:Package} ${db:Status-Status}\n' "$@" 2>/dev/null) || true
  native=$(dpkg --print-architecture)
  awk -v native=":$native\$" '
    NR == FNR { sub(native, "", $1); if ($2 == "installed") have[$1] = 1; next }
    !($1 in have)' <(printf '%s\n' "$installed") <(printf '%s\n' "$@")
}

check_system() {
  local found
  # shellcheck disable=SC1090,SC2153
  found=$(. "${OS_RELEASE:-/etc/os-release}" 2>/dev/null && echo "${ID:-} ${VERSION_ID:-}") || true
  [[ $found = "debian 12" ]] || fail \
    "this script supports Debian 12 only, found '${found:-no os-release file}'" \
    "elsewhere install the counterparts of deploy/packages.txt, then: cmake --preset release"
}

# run_apt ARGUMENT...: apt-get as root, its output in $log, its progress as a line every 10 percent.
run_apt() {
  # Status-Fd 1 mixes "dlstatus:" and "pmstatus:" lines (field 3: percent) into the output.
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive ${http_proxy:+"http_proxy=$http_proxy"} \
    apt-get -q -y -o APT::Status-Fd=1 -o DPkg::Lock::Timeout=300 -o Acquire::Retries=2 \
    -o Acquire::http::Timeout=30 "$@" </dev/null 2>&1 | tee -a "$log" | show_progress
}

show_progress() {
  local kind percent phase shown=-1 last=
  while IFS=: read -r kind _ percent _; do
    case $kind in
      dlstatus) phase=downloading ;;
      pmstatus) phase=installing ;;
      *) continue ;;
    esac
    percent=${percent%%.*}
    [[ $phase = "$last" ]] || shown=-1
    if [[ $percent =~ ^[0-9]+$ && $((percent / 10)) -gt $shown ]]; then
      say "$phase $percent %"
      shown=$((percent / 10))
      last=$phase
    fi
  done
}

explain_and_fail() {
  tail -n 15 "$log" | grep -v -E '^(dl|pm)status:' >&2 || true
  local offline='Could not resolve|Could not connect|Temporary failure|Cannot initiate|timed out'
  if grep -q -E "$offline|Unable to connect" "$log"; then
    fail "apt cannot reach its package sources: is there a network, and does apt need a proxy?"
  fi
  fail "apt could not install: $*" "its last lines are above"
}

main() {
  case ${1:-} in
    build | accuracy | bench | tests | arm64) ;;
    *) fail "usage: deploy/install_packages.sh build|accuracy|bench|tests|arm64" ;;
  esac
  check_system
  local wanted missing
  mapfile -t wanted < <(read_list "$1")
  [[ ${#wanted[@]} -gt 0 ]] || fail "no packages in $list"
  mapfile -t missing < <(find_missing "${wanted[@]}")
  if [[ ${#missing[@]} -eq 0 ]]; then
    say "all ${#wanted[@]} are installed"
    return
  fi
  say "${#missing[@]} of ${#wanted[@]} to install: ${missing[*]}"
  if [[ $(id -u) -ne 0 ]]; then
    command -v sudo >/dev/null ||
      fail "installing needs root or sudo; user $(id -un) has neither"
    if [[ -t 0 ]]; then as_root=(sudo); else as_root=(sudo -n); fi
    if [[ -t 0 ]]; then sudo -v; else sudo -n true; fi || fail "sudo refuses user $(id -un)"
  fi
  [[ $1 != arm64 ]] || "${as_root[@]}" dpkg --add-architecture arm64

  log=$(mktemp)
  trap 'rm -f "$log"' EXIT
  if ! compgen -G '/var/lib/apt/lists/*_Packages*' >/dev/null; then
    say "fetching apt's package lists"
    run_apt update || true  # one source of several may fail; what matters is whether install works
  fi
  if ! run_apt --no-install-recommends install "${missing[@]}"; then
    say "fetching newer package lists, since the install failed"
    run_apt update || true
    run_apt --no-install-recommends install "${missing[@]}" || explain_and_fail "${missing[@]}"
  fi
  mapfile -t missing < <(find_missing "${wanted[@]}")
  [[ ${#missing[@]} -eq 0 ]] || explain_and_fail "${missing[@]}"
  say "installed"
}

main "$@"
