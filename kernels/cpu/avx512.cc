// Kernels for AVX-512 F, BW, VL and DQ. Built with those flags only; everything is in an unnamed
// namespace, so that nothing compiled here can be linked into code that runs on other machines.
#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "kernels/cpu/kernel_table.h"

namespace sketchkv {
namespace {

// Each uses what stands before it.
// clang-format off
#include "kernels/cpu/lanes_avx512.inc"

__m512i Broadcast4(const uint8_t* p) { return _mm512_broadcastd_epi32(_mm_loadu_si32(p)); }
__m512i SumPairs(__m512i pairs) { return _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)); }

// sum + <digits[4], the four bytes of each lane>: digits below 128, bytes signed.
U DotBytes7(U sum, const uint8_t* digits, U bytes) {
  const __m512i pairs = _mm512_maddubs_epi16(Broadcast4(digits), bytes.v);
  return {_mm512_add_epi32(sum.v, SumPairs(pairs))};
}
// Digits below 256: a pair of products would not fit 16 bits.
U DotBytes8(U sum, const uint8_t* digits, U bytes) {
  const __m512i d = Broadcast4(digits);
  const __m512i low = _mm512_set1_epi16(255);
  const __m512i even = _mm512_maddubs_epi16(_mm512_and_si512(d, low), bytes.v);
  const __m512i odd = _mm512_maddubs_epi16(_mm512_andnot_si512(low, d), bytes.v);
  return {_mm512_add_epi32(sum.v, _mm512_add_epi32(SumPairs(even), SumPairs(odd)))};
}
// Four lanes each.
U FromQuads(__m128i k0, __m128i k4, __m128i k8, __m128i k12) {
  const __m512i x = _mm512_inserti32x4(_mm512_castsi128_si512(k0), k4, 1);
  return {_mm512_inserti32x4(_mm512_inserti32x4(x, k8, 2), k12, 3)};
}

template <int kDigits>
constexpr int kSixteensTogether = 4 / kDigits;

#include "kernels/cpu/bytes_avx512.inc"
#include "kernels/cpu/transpose_avx512.inc"
#include "kernels/cpu/sum_entries_avx2.inc"
#include "kernels/cpu/kernels.inc"
// clang-format on

}  // namespace

extern const KernelTable kAvx512Kernels;
const KernelTable kAvx512Kernels = MakeTable("avx512");

}  // namespace sketchkv
