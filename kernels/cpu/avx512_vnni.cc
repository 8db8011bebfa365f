// Kernels for AVX-512 with VBMI (lookups of bytes in 64) and VNNI (dot products of bytes). Built
// with those flags only; everything is in an unnamed namespace, so that nothing compiled here can
// be linked into code that runs on other machines.
#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "kernels/cpu/kernel_table.h"

namespace sketchkv {
namespace {

// Each uses what stands before it.
// clang-format off
#include "kernels/cpu/lanes_avx512.inc"

// sum + <digits[4], the four bytes of each lane>: digits below 128, bytes signed.
U DotBytes(U sum, const uint8_t* digits, U bytes) {
  int four = 0;
  __builtin_memcpy(&four, digits, sizeof(four));
  return {_mm512_dpbusd_epi32(sum.v, _mm512_set1_epi32(four), bytes.v)};
}

constexpr int kSixteensTogether = 2;

#include "kernels/cpu/transpose_avx.inc"
#include "kernels/cpu/sum_entries_vnni.inc"
#include "kernels/cpu/kernels.inc"
// clang-format on

}  // namespace

extern const KernelTable kAvx512VnniKernels;
const KernelTable kAvx512VnniKernels = MakeTable("avx512-vnni");

}  // namespace sketchkv
