// Kernels for AVX-512 F, BW, VL and DQ: one register holds the sixteen lanes. Built with those
// flags only; everything is in an unnamed namespace, so that nothing compiled here can be linked
// into code that runs on other machines.
#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "kernels/cpu/kernel_table.h"

namespace sketchkv {
namespace {

struct F {
  __m512 v;
};
struct U {
  __m512i v;
};

F Load(const void* p) { return {_mm512_loadu_ps(p)}; }
U LoadU(const void* p) { return {_mm512_loadu_si512(p)}; }
void Store(void* p, F a) { _mm512_storeu_ps(p, a.v); }
void StoreU(void* p, U a) { _mm512_storeu_si512(p, a.v); }

F Set(float x) { return {_mm512_set1_ps(x)}; }
U SetU(uint32_t x) { return {_mm512_set1_epi32(static_cast<int>(x))}; }

F Add(F a, F b) { return {_mm512_add_ps(a.v, b.v)}; }
F Sub(F a, F b) { return {_mm512_sub_ps(a.v, b.v)}; }
F Mul(F a, F b) { return {_mm512_mul_ps(a.v, b.v)}; }
F Div(F a, F b) { return {_mm512_div_ps(a.v, b.v)}; }
F Sqrt(F a) { return {_mm512_sqrt_ps(a.v)}; }
F Max(F a, F b) { return {_mm512_max_ps(a.v, b.v)}; }
F Min(F a, F b) { return {_mm512_min_ps(a.v, b.v)}; }
U Greater(F a, F b) { return {_mm512_movm_epi32(_mm512_cmp_ps_mask(a.v, b.v, _CMP_GT_OQ))}; }

U And(U a, U b) { return {_mm512_and_si512(a.v, b.v)}; }
U Or(U a, U b) { return {_mm512_or_si512(a.v, b.v)}; }
U Xor(U a, U b) { return {_mm512_xor_si512(a.v, b.v)}; }
U AddU(U a, U b) { return {_mm512_add_epi32(a.v, b.v)}; }
U MaxU(U a, U b) { return {_mm512_max_epu32(a.v, b.v)}; }
template <int kBits>
U ShiftLeft(U a) {
  return {_mm512_slli_epi32(a.v, kBits)};
}
template <int kBits>
U ShiftRight(U a) {
  return {_mm512_srli_epi32(a.v, kBits)};
}
U ShiftRightBy(U a, U counts) { return {_mm512_srlv_epi32(a.v, counts.v)}; }

F AsF(U a) { return {_mm512_castsi512_ps(a.v)}; }
U AsU(F a) { return {_mm512_castps_si512(a.v)}; }
F FromInt(U a) { return {_mm512_cvtepi32_ps(a.v)}; }
U ToInt(F a) { return {_mm512_cvttps_epi32(a.v)}; }
F Select(U mask, F a, F b) {
  return {_mm512_mask_blend_ps(_mm512_movepi32_mask(mask.v), b.v, a.v)};
}

U LoadI8(const void* p) {
  return {_mm512_cvtepi8_epi32(_mm_loadu_si128(static_cast<const __m128i*>(p)))};
}
U LoadU16(const void* p) {
  return {_mm512_cvtepu16_epi32(_mm256_loadu_si256(static_cast<const __m256i*>(p)))};
}
void StoreU8(void* p, U a) {
  _mm_storeu_si128(static_cast<__m128i*>(p), _mm512_cvtepi32_epi8(a.v));
}
// table[16], by the low four bits of each lane.
F LookUp(const float* table, U index) {
  return {_mm512_permutexvar_ps(index.v, _mm512_loadu_ps(table))};
}
void StoreU16(void* p, U a) {
  _mm256_storeu_si256(static_cast<__m256i*>(p), _mm512_cvtepi32_epi16(a.v));
}
F LoadHalf(const void* p) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(static_cast<const __m256i*>(p)))};
}
void StoreHalf(void* p, F a) {
  _mm256_storeu_si256(static_cast<__m256i*>(p),
                      _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

// The kernels use the transpose.
// clang-format off
#include "kernels/cpu/transpose_avx.inc"
#include "kernels/cpu/kernels.inc"
// clang-format on

}  // namespace

extern const KernelTable kAvx512Kernels;
const KernelTable kAvx512Kernels = MakeTable("avx512");

}  // namespace sketchkv
