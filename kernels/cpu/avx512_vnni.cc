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
#include "kernels/cpu/bytes_avx512.inc"

// From memory: by way of a general register it would take the ports of the lookups.
__m512i Broadcast4(const uint8_t* p) { return _mm512_broadcastd_epi32(_mm_loadu_si32(p)); }

// sum + <digits[4], the four bytes of each lane>: digits unsigned, bytes signed.
U DotBytes8(U sum, const uint8_t* digits, U bytes) {
  return {_mm512_dpbusd_epi32(sum.v, Broadcast4(digits), bytes.v)};
}
U DotBytes7(U sum, const uint8_t* digits, U bytes) { return DotBytes8(sum, digits, bytes); }

// Sums in sixteen registers.
template <int kDigits>
constexpr int kSixteensTogether = 4 / kDigits;

#include "kernels/cpu/transpose_avx512.inc"
#include "kernels/cpu/sum_entries_vnni.inc"
#include "kernels/cpu/kernels.inc"
// clang-format on

}  // namespace

extern const KernelTable kAvx512VnniKernels;
const KernelTable kAvx512VnniKernels = MakeTable("avx512-vnni");

}  // namespace sketchkv
