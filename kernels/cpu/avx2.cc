// Kernels for AVX2 and F16C: two registers hold the sixteen lanes. Built with those flags only;
// everything is in an unnamed namespace, so that nothing compiled here can be linked into code
// that runs on other machines.
#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "kernels/cpu/kernel_table.h"

namespace sketchkv {
namespace {

// What registers hold: rows of a Walsh-Hadamard transform, and sums over a dense one.
constexpr uint32_t kWalshRows = 4, kDenseRows = 4;

struct F {
  __m256 a, b;  // lanes 0-7, 8-15
};
struct U {
  __m256i a, b;
};

const float* Floats(const void* p) { return static_cast<const float*>(p); }
const __m256i* Wide(const void* p) { return static_cast<const __m256i*>(p); }

F Load(const void* p) { return {_mm256_loadu_ps(Floats(p)), _mm256_loadu_ps(Floats(p) + 8)}; }
U LoadU(const void* p) { return {_mm256_loadu_si256(Wide(p)), _mm256_loadu_si256(Wide(p) + 1)}; }
void Store(void* p, F x) {
  _mm256_storeu_ps(static_cast<float*>(p), x.a);
  _mm256_storeu_ps(static_cast<float*>(p) + 8, x.b);
}
void StoreU(void* p, U x) {
  _mm256_storeu_si256(static_cast<__m256i*>(p), x.a);
  _mm256_storeu_si256(static_cast<__m256i*>(p) + 1, x.b);
}

F Set(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
U SetU(uint32_t x) {
  return {_mm256_set1_epi32(static_cast<int>(x)), _mm256_set1_epi32(static_cast<int>(x))};
}

F Add(F x, F y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
F Sub(F x, F y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
F Mul(F x, F y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
F Div(F x, F y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
F Sqrt(F x) { return {_mm256_sqrt_ps(x.a), _mm256_sqrt_ps(x.b)}; }
F Max(F x, F y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
F Min(F x, F y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
U Greater(F x, F y) {
  return {_mm256_castps_si256(_mm256_cmp_ps(x.a, y.a, _CMP_GT_OQ)),
          _mm256_castps_si256(_mm256_cmp_ps(x.b, y.b, _CMP_GT_OQ))};
}

U And(U x, U y) { return {_mm256_and_si256(x.a, y.a), _mm256_and_si256(x.b, y.b)}; }
U Or(U x, U y) { return {_mm256_or_si256(x.a, y.a), _mm256_or_si256(x.b, y.b)}; }
U Xor(U x, U y) { return {_mm256_xor_si256(x.a, y.a), _mm256_xor_si256(x.b, y.b)}; }
U AddU(U x, U y) { return {_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)}; }
U MaxU(U x, U y) { return {_mm256_max_epu32(x.a, y.a), _mm256_max_epu32(x.b, y.b)}; }
// x + step where a > b.
U AddWhereGreater(U x, F a, F b, uint32_t step) { return AddU(x, And(Greater(a, b), SetU(step))); }
template <int kBits>
U ShiftLeft(U x) {
  return {_mm256_slli_epi32(x.a, kBits), _mm256_slli_epi32(x.b, kBits)};
}
template <int kBits>
U ShiftRight(U x) {
  return {_mm256_srli_epi32(x.a, kBits), _mm256_srli_epi32(x.b, kBits)};
}
U ShiftLeftBy(U x, U counts) {
  return {_mm256_sllv_epi32(x.a, counts.a), _mm256_sllv_epi32(x.b, counts.b)};
}
U ShiftRightBy(U x, U counts) {
  return {_mm256_srlv_epi32(x.a, counts.a), _mm256_srlv_epi32(x.b, counts.b)};
}

F AsF(U x) { return {_mm256_castsi256_ps(x.a), _mm256_castsi256_ps(x.b)}; }
U AsU(F x) { return {_mm256_castps_si256(x.a), _mm256_castps_si256(x.b)}; }
F FromInt(U x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
U ToInt(F x) { return {_mm256_cvttps_epi32(x.a), _mm256_cvttps_epi32(x.b)}; }
F Select(U mask, F x, F y) {
  return {_mm256_blendv_ps(y.a, x.a, _mm256_castsi256_ps(mask.a)),
          _mm256_blendv_ps(y.b, x.b, _mm256_castsi256_ps(mask.b))};
}

// x where a > b, else 0.
F KeepWhereGreater(F a, F b, F x) {
  return {_mm256_and_ps(_mm256_cmp_ps(a.a, b.a, _CMP_GT_OQ), x.a),
          _mm256_and_ps(_mm256_cmp_ps(a.b, b.b, _CMP_GT_OQ), x.b)};
}

U LoadI8(const void* p) {
  const __m128i x = _mm_loadu_si128(static_cast<const __m128i*>(p));
  return {_mm256_cvtepi8_epi32(x), _mm256_cvtepi8_epi32(_mm_srli_si128(x, 8))};
}
U LoadI16(const void* p) {
  const auto* x = static_cast<const __m128i*>(p);
  return {_mm256_cvtepi16_epi32(_mm_loadu_si128(x)), _mm256_cvtepi16_epi32(_mm_loadu_si128(x + 1))};
}
U LoadU8(const void* p) {
  const __m128i x = _mm_loadu_si128(static_cast<const __m128i*>(p));
  return {_mm256_cvtepu8_epi32(x), _mm256_cvtepu8_epi32(_mm_srli_si128(x, 8))};
}
U LoadU16(const void* p) {
  const auto* x = static_cast<const __m128i*>(p);
  return {_mm256_cvtepu16_epi32(_mm_loadu_si128(x)), _mm256_cvtepu16_epi32(_mm_loadu_si128(x + 1))};
}
void StoreU8(void* p, U x) {
  const __m256i words = _mm256_permute4x64_epi64(_mm256_packus_epi32(x.a, x.b), 0xD8);
  const __m128i low = _mm256_castsi256_si128(words);
  _mm_storeu_si128(static_cast<__m128i*>(p),
                   _mm_packus_epi16(low, _mm256_extracti128_si256(words, 1)));
}
// Sixteen floats.
using FloatTable = F;
FloatTable LoadFloatTable(const float* table) { return Load(table); }
template <int kBits>
__m256 LookUp(const FloatTable& table, __m256i index) {
  const __m256 low = _mm256_permutevar8x32_ps(table.a, index);
  if (kBits <= 3) return low;
  const __m256 high = _mm256_permutevar8x32_ps(table.b, index);
  return _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(index, 28)));
}
// Of a table that repeats after 2^kBits: by the low four bits of each lane, or fewer.
template <int kBits>
F LookUp(const FloatTable& table, U index) {
  return {LookUp<kBits>(table, index.a), LookUp<kBits>(table, index.b)};
}
void StoreU16(void* p, U x) {
  const __m256i packed = _mm256_packus_epi32(x.a, x.b);  // 0-3 8-11 | 4-7 12-15
  _mm256_storeu_si256(static_cast<__m256i*>(p), _mm256_permute4x64_epi64(packed, 0xD8));
}
F LoadHalf(const void* p) {
  const auto* x = static_cast<const __m128i*>(p);
  return {_mm256_cvtph_ps(_mm_loadu_si128(x)), _mm256_cvtph_ps(_mm_loadu_si128(x + 1))};
}
void StoreHalf(void* p, F x) {
  auto* out = static_cast<__m128i*>(p);
  _mm_storeu_si128(out, _mm256_cvtps_ph(x.a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  _mm_storeu_si128(out + 1, _mm256_cvtps_ph(x.b, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

// Sixteen bytes, in every lane's reach.
U LoadBytes16(const void* p) {
  const __m256i x = _mm256_broadcastsi128_si256(_mm_loadu_si128(static_cast<const __m128i*>(p)));
  return {x, x};
}
// table[16], by the bytes of each lane, which are below 16.
U ShuffleBytes(U table, U index) {
  return {_mm256_shuffle_epi8(table.a, index.a), _mm256_shuffle_epi8(table.b, index.b)};
}
__m256i Broadcast4(const uint8_t* p) { return _mm256_broadcastd_epi32(_mm_loadu_si32(p)); }
__m256i SumPairs(__m256i pairs) { return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)); }

// sum + <digits[4], the four bytes of each lane>: digits below 128, bytes signed.
U DotBytes7(U sum, const uint8_t* digits, U bytes) {
  const __m256i d = Broadcast4(digits);
  return {_mm256_add_epi32(sum.a, SumPairs(_mm256_maddubs_epi16(d, bytes.a))),
          _mm256_add_epi32(sum.b, SumPairs(_mm256_maddubs_epi16(d, bytes.b)))};
}
// Digits below 256: a pair of products would not fit 16 bits.
__m256i Products8(__m256i even, __m256i odd, __m256i bytes) {
  return _mm256_add_epi32(SumPairs(_mm256_maddubs_epi16(even, bytes)),
                          SumPairs(_mm256_maddubs_epi16(odd, bytes)));
}
U DotBytes8(U sum, const uint8_t* digits, U bytes) {
  const __m256i d = Broadcast4(digits);
  const __m256i low = _mm256_set1_epi16(255);
  const __m256i even = _mm256_and_si256(d, low), odd = _mm256_andnot_si256(low, d);
  return {_mm256_add_epi32(sum.a, Products8(even, odd, bytes.a)),
          _mm256_add_epi32(sum.b, Products8(even, odd, bytes.b))};
}
// Four lanes each.
U FromQuads(__m128i k0, __m128i k4, __m128i k8, __m128i k12) {
  return {_mm256_set_m128i(k4, k0), _mm256_set_m128i(k12, k8)};
}

template <int kDigits>
constexpr int kSixteensTogether = 1;

// Rows of a 4 x 4 transpose of dwords, in each quarter of the lanes.
void Transpose4(__m256i* x0, __m256i* x1, __m256i* x2, __m256i* x3) {
  const __m256i a = _mm256_unpacklo_epi32(*x0, *x1);
  const __m256i b = _mm256_unpackhi_epi32(*x0, *x1);
  const __m256i c = _mm256_unpacklo_epi32(*x2, *x3);
  const __m256i d = _mm256_unpackhi_epi32(*x2, *x3);
  *x0 = _mm256_unpacklo_epi64(a, c);
  *x1 = _mm256_unpackhi_epi64(a, c);
  *x2 = _mm256_unpacklo_epi64(b, d);
  *x3 = _mm256_unpackhi_epi64(b, d);
}
void Transpose4(U* x) {
  Transpose4(&x[0].a, &x[1].a, &x[2].a, &x[3].a);
  Transpose4(&x[0].b, &x[1].b, &x[2].b, &x[3].b);
}

struct ByteTable {
  __m256i part[4];  // sixteen bytes each, twice
};
struct ByteIndex {
  U v, bit4, bit5;  // the bits in the sign of each byte
};

ByteTable LoadByteTable(const uint8_t* table) {
  ByteTable r;
  for (int i = 0; i < 4; ++i) {
    r.part[i] = _mm256_broadcastsi128_si256(
        _mm_loadu_si128(reinterpret_cast<const __m128i*>(table + 16 * i)));
  }
  return r;
}
// min(x, 63) of each byte.
ByteIndex IndexOf(U x) {
  const __m256i most = _mm256_set1_epi8(63);
  const U index = {_mm256_min_epu8(x.a, most), _mm256_min_epu8(x.b, most)};
  return {index, ShiftLeft<3>(index), ShiftLeft<2>(index)};
}
__m256i LookUpBytes(const ByteTable& table, __m256i index, __m256i bit4, __m256i bit5) {
  const __m256i low = _mm256_blendv_epi8(_mm256_shuffle_epi8(table.part[0], index),
                                         _mm256_shuffle_epi8(table.part[1], index), bit4);
  const __m256i high = _mm256_blendv_epi8(_mm256_shuffle_epi8(table.part[2], index),
                                          _mm256_shuffle_epi8(table.part[3], index), bit4);
  return _mm256_blendv_epi8(low, high, bit5);
}
U LookUpBytes(const ByteTable& table, const ByteIndex& index) {
  return {LookUpBytes(table, index.v.a, index.bit4.a, index.bit5.a),
          LookUpBytes(table, index.v.b, index.bit4.b, index.bit5.b)};
}
__m256i DotBytes(__m256i sum, __m256i a, __m256i b) {
  const __m256i pairs = _mm256_maddubs_epi16(a, b);
  return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
// sum + the four products of unsigned and signed bytes, of which no two exceed 32,767.
U DotBytes(const U& sum, const U& x, const U& y) {
  return {DotBytes(sum.a, x.a, y.a), DotBytes(sum.b, x.b, y.b)};
}

// The kernels use what stands before them.
// clang-format off
#include "kernels/cpu/transpose_avx2.inc"
#include "kernels/cpu/sum_entries_avx2.inc"
#include "kernels/cpu/kernels.inc"
// clang-format on

}  // namespace

extern const KernelTable kAvx2Kernels;
const KernelTable kAvx2Kernels = MakeTable("avx2");

}  // namespace sketchkv
