#pragma once

#include <cmath>

#include "kernels/cuda/step.cuh"

// Queries, projected and rounded to integers of fifteen bits: an upper and a lower byte. A key's
// score is then scale * (step * <integers, what its bits stand for> + base).
namespace sketchkv::cuda {

constexpr float kLargestInteger = 127.0f * 128.0f;

// Levels of codes (kernels/code_book.cc): integers times a unit.
constexpr float kTwoBitUnit = 0.0167820f;
constexpr float kTwoBitLow = 27.0f, kTwoBitHigh = 90.0f;
constexpr float kThreeBitUnit = 0.0188866f;
// As bytes, the lowest first: -114, -71, -40, -13, then 13, 40, 71, 114.
constexpr uint32_t kThreeBitLow = 0xF3D8B98Eu, kThreeBitHigh = 0x7247280Du;
constexpr float kSpreadUnit = 0.0179529f;
constexpr float kSpreadHighest = 65.0f, kSpreadMiddle = 34.0f, kSpreadLowest = 17.0f;

__device__ inline bool SignAt(const uint32_t (&signs)[kDim / 32], uint32_t channel) {
  return signs[channel / 32] >> (channel % 32) & 1;
}

// The Walsh-Hadamard transform of a warp's 128 numbers; lane l holds numbers 4l to 4l + 3.
__device__ inline void WalshOfWarp(float (&x)[4], uint32_t lane) {
  const float a = x[0] + x[1], b = x[0] - x[1], c = x[2] + x[3], d = x[2] - x[3];
  x[0] = a + c;
  x[1] = b + d;
  x[2] = a - c;
  x[3] = b - d;
#pragma unroll
  for (uint32_t h = 1; h < 32; h *= 2) {
#pragma unroll
    for (float& y : x) {
      const float other = __shfl_xor_sync(0xFFFFFFFF, y, h);
      y = (lane & h) != 0 ? other - y : y + other;
    }
  }
}

__device__ inline float LargestOfWarp(float x) {
#pragma unroll
  for (uint32_t h = 16; h > 0; h /= 2) x = fmaxf(x, __shfl_xor_sync(0xFFFFFFFF, x, h));
  return x;
}
// The same of numbers that are not negative, in one instruction.
__device__ inline float LargestMagnitude(float x) {
  return __uint_as_float(__reduce_max_sync(0xFFFFFFFF, __float_as_uint(x)));
}
__device__ inline float SumOfWarp(float x) {
#pragma unroll
  for (uint32_t h = 16; h > 0; h /= 2) x += __shfl_xor_sync(0xFFFFFFFF, x, h);
  return x;
}

// A segment's queries while they are made into integers.
template <KeyKind kKeys>
struct alignas(16) QueryRoom {
  static constexpr uint32_t kRows = kKeys == KeyKind::kSigns ? 2 * kDim : kDim;
  // Projected, in units of the integers. A row is padded, so that queries are in different banks.
  float projected[kMaxQueries][kRows + 4];
  float step[kMaxQueries];
  float base[kMaxQueries];
};

// A warp's queries of one (sequence, kv head): numbers warp, warp + kBlockWarps, ...
template <uint32_t kBlockWarps>
struct QueryRows {
  static constexpr uint32_t kEach = (kMaxQueries + kBlockWarps - 1) / kBlockWarps;
  float4 rows[kEach];
};
template <uint32_t kBlockWarps>
__device__ inline QueryRows<kBlockWarps> LoadQueries(const float* queries, uint32_t num_queries) {
  QueryRows<kBlockWarps> loaded = {};
#pragma unroll
  for (uint32_t i = 0; i < loaded.kEach; ++i) {
    const uint32_t q = threadIdx.x / 32 + i * kBlockWarps;
    if (q < num_queries) {
      loaded.rows[i] = reinterpret_cast<const float4*>(queries + q * kDim)[threadIdx.x % 32];
    }
  }
  return loaded;
}

// The whole block projects them. Ends with a barrier.
template <KeyKind kKeys, uint32_t kBlockWarps>
__device__ void ProjectQueries(const CellPlan& plan, const QueryRows<kBlockWarps>& queries,
                               uint32_t num_queries, QueryRoom<kKeys>* room) {
  constexpr uint32_t kBlocks = QueryRoom<kKeys>::kRows / kDim;
  const uint32_t lane = threadIdx.x % 32;
#pragma unroll
  for (uint32_t r = 0; r < queries.kEach; ++r) {
    const uint32_t q = threadIdx.x / 32 + r * kBlockWarps;
    if (q >= kMaxQueries) continue;
    if (q >= num_queries) {
      for (uint32_t block = 0; block < kBlocks; ++block) {
        reinterpret_cast<float4*>(room->projected[q] + block * kDim)[lane] = {};
      }
      if (lane == 0) room->step[q] = room->base[q] = 0.0f;
      continue;
    }
    float x[4] = {queries.rows[r].x, queries.rows[r].y, queries.rows[r].z, queries.rows[r].w};
    // Over a power of two, so that sums do not overflow.
    float largest =
        LargestMagnitude(fmaxf(fmaxf(fabsf(x[0]), fabsf(x[1])), fmaxf(fabsf(x[2]), fabsf(x[3]))));
    const uint32_t exponent = __float_as_uint(largest) >> 23;  // biased
    const float down = PowerOfTwoDown(exponent), up = PowerOfTwoUp(exponent);
#pragma unroll
    for (float& y : x) y *= down;
    float y[kBlocks][4];
    largest = 0.0f;
    float base = 0.0f;
#pragma unroll
    for (uint32_t block = 0; block < kBlocks; ++block) {
#pragma unroll
      for (uint32_t i = 0; i < 4; ++i) {
        y[block][i] = SignAt(plan.key_signs[block], 4 * lane + i) ? -x[i] : x[i];
      }
      WalshOfWarp(y[block], lane);
#pragma unroll
      for (uint32_t i = 0; i < 4; ++i) {
        largest = fmaxf(largest, fabsf(y[block][i]));
        // What bits that are 0 stand for.
        if (kKeys == KeyKind::kSigns) base -= y[block][i];
        if (kKeys == KeyKind::kTwoBits) base -= kTwoBitHigh * kTwoBitUnit * y[block][i];
        if (kKeys == KeyKind::kThreeBits && lane % 8 >= 6) {
          base -= (kSpreadHighest + kSpreadMiddle + kSpreadLowest) * kSpreadUnit * y[block][i];
        }
      }
    }
    largest = LargestMagnitude(largest);
    base = SumOfWarp(base);
    // The largest coefficient of a row, over the number its bit stands for.
    constexpr float kLargestWeight = kKeys == KeyKind::kSigns ? 2.0f
                                     : kKeys == KeyKind::kTwoBits
                                         ? (kTwoBitHigh - kTwoBitLow) * kTwoBitUnit
                                         : kSpreadHighest * kSpreadUnit / 4;
    const float step = largest * kLargestWeight / kLargestInteger;
    const float inverse = step > 0.0f ? __fdividef(1.0f, step) : 0.0f;
#pragma unroll
    for (uint32_t block = 0; block < kBlocks; ++block) {
      const float4 scaled = {y[block][0] * inverse, y[block][1] * inverse, y[block][2] * inverse,
                             y[block][3] * inverse};
      reinterpret_cast<float4*>(room->projected[q] + block * kDim)[lane] = scaled;
    }
    if (lane == 0) {
      room->step[q] = step * up;
      room->base[q] = base * up;
    }
  }
  __syncthreads();
}

// What bits [8 * byte of a word's unpacked register] weigh for a query, in units of its integers.
// Registers are those of UnpackWord in key_scores.cuh.
template <KeyKind kKeys>
__device__ float WeightOf(const float* projected, uint32_t word, uint32_t reg, uint32_t byte) {
  if constexpr (kKeys == KeyKind::kThreeBits) {
    const uint32_t group = 32 * (word / 3), in_group = 8 * (word % 3);
    if (reg < 2) return projected[group + in_group + 4 * reg + byte] * kThreeBitUnit;
    const uint32_t nibble = in_group + 2 * byte + reg - 2;
    const uint32_t bit = nibble % 3;
    const float weight = bit == 0 ? kSpreadHighest : (bit == 1 ? kSpreadMiddle : kSpreadLowest);
    return projected[group + 24 + nibble / 3] * (weight * kSpreadUnit / 4);
  } else {
    const uint32_t bit = 32 * word + 8 * byte + reg;
    const float place = static_cast<float>(1u << (reg % 4));  // what the bit stands for
    if constexpr (kKeys == KeyKind::kSigns) return projected[bit] * (2.0f / place);
    const float weight = reg % 2 == 0 ? kTwoBitHigh - kTwoBitLow : kTwoBitHigh + kTwoBitLow;
    return projected[bit / 2] * (weight * kTwoBitUnit / place);
  }
}

// A lane's operands of the products with its words, for all steps: query g's upper bytes in row g,
// its lower ones in row g + 8.
template <KeyKind kKeys>
struct QueryOperands {
  static constexpr uint32_t kWordsOfLane = (kKeys == KeyKind::kThreeBits ? 12 : 8) / 4;
  static constexpr uint32_t kProducts = kKeys == KeyKind::kThreeBits ? 2 : 4;  // a word
  uint32_t a[kWordsOfLane][kProducts][4];
  float step, base;
};

// The block's warps make some operands each, since all want the same. Takes the room for them.
template <KeyKind kKeys, uint32_t kBlockWarps>
__device__ void MakeOperands(QueryRoom<kKeys>* room, QueryOperands<kKeys>* own) {
  using Operands = QueryOperands<kKeys>;
  constexpr uint32_t kProducts = Operands::kWordsOfLane * Operands::kProducts;
  constexpr uint32_t kEach = (kProducts + kBlockWarps - 1) / kBlockWarps;
  static_assert(sizeof(room->projected) >= kProducts * 32 * sizeof(uint4));
  const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, c = lane % 4;
  own->step = room->step[g];
  own->base = room->base[g];
  const float* projected = room->projected[g];
  uint4 made[kEach];
#pragma unroll
  for (uint32_t e = 0; e < kEach; ++e) {
    const uint32_t p = min(warp + e * kBlockWarps, kProducts - 1);
    const uint32_t word = c + p / Operands::kProducts * 4;
    uint32_t upper[2] = {}, lower[2] = {};
#pragma unroll
    for (uint32_t i = 0; i < 8; ++i) {
      const uint32_t reg = p % Operands::kProducts * 2 + i / 4;
      const int integer = __float2int_rn(WeightOf<kKeys>(projected, word, reg, i % 4));
      const int high = (integer + 64) >> 7;
      upper[i / 4] |= (high & 0xFF) << (8 * (i % 4));
      lower[i / 4] |= ((integer - high * 128) & 0xFF) << (8 * (i % 4));
    }
    made[e] = {upper[0], lower[0], upper[1], lower[1]};
  }
  __syncthreads();
  auto* const operands = reinterpret_cast<uint4*>(room->projected);
#pragma unroll
  for (uint32_t e = 0; e < kEach; ++e) {
    const uint32_t p = warp + e * kBlockWarps;
    if (p < kProducts) operands[p * 32 + lane] = made[e];
  }
  __syncthreads();
#pragma unroll
  for (uint32_t p = 0; p < kProducts; ++p) {
    const uint4 x = operands[p * 32 + lane];
    uint32_t(&a)[4] = own->a[p / Operands::kProducts][p % Operands::kProducts];
    a[0] = x.x, a[1] = x.y, a[2] = x.z, a[3] = x.w;
  }
}

}  // namespace sketchkv::cuda
