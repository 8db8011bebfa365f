#!/bin/sh
# no_weak_symbols.sh NM OBJECT...: fails when an object defines a weak or unique symbol, which the
# linker could keep in place of the one compiled for every CPU. References (lower case w and v) and
# the sanitizers' own bookkeeping are none of it.
nm=$1
shift
[ $# -gt 0 ] || { echo "no objects given" >&2; exit 2; }
found=0
for object in "$@"; do
  symbols=$("$nm" "$object") || exit 2
  echo "$symbols" | grep -q "Kernels" || { echo "$object: no kernel table in it" >&2; exit 2; }
  weak=$(echo "$symbols" | grep -E ' [WVu] ' | grep -v -E ' (__odr_asan|DW\.ref|\.L)')
  [ -z "$weak" ] || { echo "$object:"; echo "$weak"; found=1; }
done
exit $found
