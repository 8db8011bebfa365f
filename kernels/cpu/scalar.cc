// Portable kernels: sixteen lanes written as loops. The oracle of the other instruction sets, and
// all there is on machines without them. Everything is in an unnamed namespace, as in the other
// files of its kind.
#include <cstddef>
#include <cstdint>

#include "kernels/cpu/kernel_table.h"

namespace sketchkv {
namespace {

// What registers hold: rows of a Walsh-Hadamard transform, and sums over a dense one.
constexpr uint32_t kWalshRows = 4, kDenseRows = 4;

#define SKETCHKV_EACH_LANE for (int i = 0; i < 16; ++i)

struct F {
  float v[16];
};
struct U {
  uint32_t v[16];
};

F Load(const void* p) {
  F r;
  __builtin_memcpy(&r, p, sizeof(r));
  return r;
}
U LoadU(const void* p) {
  U r;
  __builtin_memcpy(&r, p, sizeof(r));
  return r;
}
void Store(void* p, const F& a) { __builtin_memcpy(p, &a, sizeof(a)); }
void StoreU(void* p, const U& a) { __builtin_memcpy(p, &a, sizeof(a)); }

F Set(float x) {
  F r;
  SKETCHKV_EACH_LANE r.v[i] = x;
  return r;
}
U SetU(uint32_t x) {
  U r;
  SKETCHKV_EACH_LANE r.v[i] = x;
  return r;
}

F Add(const F& a, const F& b) {
  F r;
  SKETCHKV_EACH_LANE r.v[i] = a.v[i] + b.v[i];
  return r;
}
F Sub(const F& a, const F& b) {
  F r;
  SKETCHKV_EACH_LANE r.v[i] = a.v[i] - b.v[i];
  return r;
}
F Mul(const F& a, const F& b) {
  F r;
  SKETCHKV_EACH_LANE r.v[i] = a.v[i] * b.v[i];
  return r;
}
F Div(const F& a, const F& b) {
  F r;
  SKETCHKV_EACH_LANE r.v[i] = a.v[i] / b.v[i];
  return r;
}
F Sqrt(const F& a) {
  F r;
  SKETCHKV_EACH_LANE r.v[i] = __builtin_sqrtf(a.v[i]);
  return r;
}
// As the x86 instructions: the second operand when equal or unordered.
F Max(const F& a, const F& b) {
  F r;
  SKETCHKV_EACH_LANE r.v[i] = a.v[i] > b.v[i] ? a.v[i] : b.v[i];
  return r;
}
F Min(const F& a, const F& b) {
  F r;
  SKETCHKV_EACH_LANE r.v[i] = a.v[i] < b.v[i] ? a.v[i] : b.v[i];
  return r;
}
U Greater(const F& a, const F& b) {
  U r;
  SKETCHKV_EACH_LANE r.v[i] = a.v[i] > b.v[i] ? 0xFFFFFFFFu : 0u;
  return r;
}

// x + step where a > b.
U AddWhereGreater(const U& x, const F& a, const F& b, uint32_t step) {
  U r;
  SKETCHKV_EACH_LANE r.v[i] = x.v[i] + (a.v[i] > b.v[i] ? step : 0u);
  return r;
}

U And(const U& a, const U& b) {
  U r;
  SKETCHKV_EACH_LANE r.v[i] = a.v[i] & b.v[i];
  return r;
}
U Or(const U& a, const U& b) {
  U r;
  SKETCHKV_EACH_LANE r.v[i] = a.v[i] | b.v[i];
  return r;
}
U Xor(const U& a, const U& b) {
  U r;
  SKETCHKV_EACH_LANE r.v[i] = a.v[i] ^ b.v[i];
  return r;
}
U AddU(const U& a, const U& b) {
  U r;
  SKETCHKV_EACH_LANE r.v[i] = a.v[i] + b.v[i];
  return r;
}
U MaxU(const U& a, const U& b) {
  U r;
  SKETCHKV_EACH_LANE r.v[i] = a.v[i] > b.v[i] ? a.v[i] : b.v[i];
  return r;
}
template <int kBits>
U ShiftLeft(const U& a) {
  U r;
  SKETCHKV_EACH_LANE r.v[i] = a.v[i] << kBits;
  return r;
}
template <int kBits>
U ShiftRight(const U& a) {
  U r;
  SKETCHKV_EACH_LANE r.v[i] = a.v[i] >> kBits;
  return r;
}
U ShiftLeftBy(const U& a, const U& counts) {
  U r;
  SKETCHKV_EACH_LANE r.v[i] = a.v[i] << counts.v[i];
  return r;
}
U ShiftRightBy(const U& a, const U& counts) {
  U r;
  SKETCHKV_EACH_LANE r.v[i] = a.v[i] >> counts.v[i];
  return r;
}

F AsF(const U& a) {
  F r;
  __builtin_memcpy(&r, &a, sizeof(r));
  return r;
}
U AsU(const F& a) {
  U r;
  __builtin_memcpy(&r, &a, sizeof(r));
  return r;
}
// Signed 32-bit integers; the caller keeps x in range.
F FromInt(const U& a) {
  F r;
  SKETCHKV_EACH_LANE r.v[i] = static_cast<float>(static_cast<int32_t>(a.v[i]));
  return r;
}
U ToInt(const F& a) {
  U r;
  SKETCHKV_EACH_LANE r.v[i] = static_cast<uint32_t>(static_cast<int32_t>(a.v[i]));
  return r;
}
F Select(const U& mask, const F& a, const F& b) {
  F r;
  SKETCHKV_EACH_LANE r.v[i] = mask.v[i] != 0 ? a.v[i] : b.v[i];
  return r;
}

// x where a > b, else 0.
F KeepWhereGreater(const F& a, const F& b, const F& x) {
  F r;
  SKETCHKV_EACH_LANE r.v[i] = a.v[i] > b.v[i] ? x.v[i] : 0.0f;
  return r;
}

U LoadI8(const void* p) {
  int8_t x[16];
  __builtin_memcpy(x, p, sizeof(x));
  U r;
  SKETCHKV_EACH_LANE r.v[i] = static_cast<uint32_t>(static_cast<int32_t>(x[i]));
  return r;
}
U LoadI16(const void* p) {
  int16_t x[16];
  __builtin_memcpy(x, p, sizeof(x));
  U r;
  SKETCHKV_EACH_LANE r.v[i] = static_cast<uint32_t>(static_cast<int32_t>(x[i]));
  return r;
}
U LoadU8(const void* p) {
  uint8_t x[16];
  __builtin_memcpy(x, p, sizeof(x));
  U r;
  SKETCHKV_EACH_LANE r.v[i] = x[i];
  return r;
}
U LoadU16(const void* p) {
  uint16_t x[16];
  __builtin_memcpy(x, p, sizeof(x));
  U r;
  SKETCHKV_EACH_LANE r.v[i] = x[i];
  return r;
}
// Lanes below 2^8.
void StoreU8(void* p, const U& a) {
  uint8_t x[16];
  SKETCHKV_EACH_LANE x[i] = static_cast<uint8_t>(a.v[i]);
  __builtin_memcpy(p, x, sizeof(x));
}
// Sixteen floats.
using FloatTable = const float*;
FloatTable LoadFloatTable(const float* table) { return table; }
// Of a table that repeats after 2^kBits: by the low four bits of each lane, or fewer.
template <int kBits>
F LookUp(const FloatTable& table, const U& index) {
  F r;
  SKETCHKV_EACH_LANE r.v[i] = table[index.v[i] & 15];
  return r;
}
// Lanes below 2^16.
void StoreU16(void* p, const U& a) {
  uint16_t x[16];
  SKETCHKV_EACH_LANE x[i] = static_cast<uint16_t>(a.v[i]);
  __builtin_memcpy(p, x, sizeof(x));
}

float HalfToFloat(uint32_t half) {
  const uint32_t sign = (half & 0x8000u) << 16;
  const uint32_t magnitude = half & 0x7FFFu;
  uint32_t bits = 0;
  float r = 0;
  if (magnitude >= 0x7C00u) {  // infinity, NaN
    bits = sign | 0x7F800000u | (magnitude & 0x3FFu) << 13;
    if (magnitude > 0x7C00u) bits |= 0x400000u;  // quiet, as the instruction does
  } else if (magnitude >= 0x400u) {
    bits = sign | ((magnitude << 13) + 0x38000000u);
  } else {  // subnormal: exact in float
    r = static_cast<float>(magnitude) * 0x1p-24f;
    __builtin_memcpy(&bits, &r, sizeof(bits));
    bits |= sign;
  }
  __builtin_memcpy(&r, &bits, sizeof(r));
  return r;
}

uint32_t FloatToHalf(float x) {
  uint32_t bits = 0;
  __builtin_memcpy(&bits, &x, sizeof(bits));
  const uint32_t sign = bits >> 16 & 0x8000u;
  const uint32_t magnitude = bits & 0x7FFFFFFFu;
  if (magnitude > 0x7F800000u) return sign | 0x7E00u | (magnitude >> 13 & 0x3FFu);
  if (magnitude >= 0x477FF000u) return sign | 0x7C00u;  // 65520 and more
  if (magnitude < 0x38800000u) {                        // below 2^-14: a multiple of 2^-24
    float y = 0;
    __builtin_memcpy(&y, &magnitude, sizeof(y));
    y = y + 0.5f;  // ulp of 0.5 is 2^-24: the addition rounds to nearest even
    uint32_t rounded = 0;
    __builtin_memcpy(&rounded, &y, sizeof(rounded));
    return sign | (rounded - 0x3F000000u);
  }
  const uint32_t odd = magnitude >> 13 & 1u;
  return sign | (magnitude - 0x38000000u + 0xFFFu + odd) >> 13;
}

F LoadHalf(const void* p) {
  uint16_t x[16];
  __builtin_memcpy(x, p, sizeof(x));
  F r;
  SKETCHKV_EACH_LANE r.v[i] = HalfToFloat(x[i]);
  return r;
}
void StoreHalf(void* p, const F& a) {
  uint16_t x[16];
  SKETCHKV_EACH_LANE x[i] = static_cast<uint16_t>(FloatToHalf(a.v[i]));
  __builtin_memcpy(p, x, sizeof(x));
}

// Sixteen bytes, in every lane's reach.
U LoadBytes16(const void* p) {
  U r = {};
  __builtin_memcpy(r.v, p, 16);
  return r;
}
// table[16], by the bytes of each lane, which are below 16.
U ShuffleBytes(const U& table, const U& index) {
  uint8_t entries[16], at[64];
  __builtin_memcpy(entries, table.v, sizeof(entries));
  __builtin_memcpy(at, index.v, sizeof(at));
  for (uint8_t& byte : at) byte = entries[byte & 15];
  return LoadU(at);
}
// sum + <digits[4], the four bytes of each lane>: digits unsigned, bytes signed.
U DotBytes8(const U& sum, const uint8_t* digits, const U& bytes) {
  int8_t x[64];
  __builtin_memcpy(x, bytes.v, sizeof(x));
  U r = sum;
  SKETCHKV_EACH_LANE {
    for (int j = 0; j < 4; ++j) r.v[i] += static_cast<uint32_t>(x[4 * i + j] * digits[j]);
  }
  return r;
}

U DotBytes7(const U& sum, const uint8_t* digits, const U& bytes) {
  return DotBytes8(sum, digits, bytes);
}

// In place: block[i][j] <-> block[j][i].
void Transpose16(float* block) {
  for (int i = 0; i < 16; ++i) {
    for (int j = 0; j < i; ++j) {
      const float x = block[16 * i + j];
      block[16 * i + j] = block[16 * j + i];
      block[16 * j + i] = x;
    }
  }
}

// Of rows row(0) to row(15); out(i, x) takes column i.
template <typename Row, typename Out>
void TransposeRows(const Row& row, const Out& out) {
  alignas(64) float block[256];
  for (int i = 0; i < 16; ++i) Store(block + 16 * i, row(i));
  Transpose16(block);
  for (int i = 0; i < 16; ++i) out(i, Load(block + 16 * i));
}

constexpr int kTilesTogether = 1;
template <int kDigits>
constexpr int kSixteensTogether = 1;

// sum over nibbles of weight times entry, per tile and query.
template <int kQueries, int kTiles>
void SumEntries(const ScorePlanesArgs& args, uint32_t tile, U (*sums)[kQueries]) {
  const uint8_t* line = args.planes[tile];
  for (int q = 0; q < kQueries; ++q) {
    sums[0][q] = SetU(0);
    for (uint32_t n = 0; n < 8 * args.words; ++n) {
      const uint32_t place = 8 * (n / 8) + 4 * (n % 2) + n % 8 / 2;  // [words][2][4]
      const uint8_t* entries = args.tables[q]->entries + 16 * place;
      const uint32_t weight = args.tables[q]->weights[place];
      const U word = LoadU(line + 64 * (n / 8));
      SKETCHKV_EACH_LANE { sums[0][q].v[i] += weight * entries[word.v[i] >> 4 * (n % 8) & 15]; }
    }
  }
}

// The kernels use what stands before them.
// clang-format off
#include "kernels/cpu/bytes_scalar.inc"
#include "kernels/cpu/kernels.inc"
// clang-format on

}  // namespace

extern const KernelTable kScalarKernels;
const KernelTable kScalarKernels = MakeTable("scalar");

}  // namespace sketchkv
