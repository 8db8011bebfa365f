#pragma once

#include <cuda_fp16.h>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/ptx.cuh"

// A token a lane: what encoding and decoding do with the 128 numbers of one, in registers. Every
// operation is that of the CPU's kernels, rounded alone and in their order (these files are
// compiled without contraction), so that bytes are equal.
namespace sketchkv::cuda {

constexpr uint32_t kWarpTokens = 32;  // two tiles
constexpr uint32_t kTileTokens = 16;
constexpr uint32_t kAllLanes = 0xFFFFFFFF;

// What a lane works on: none where there is no cell.
struct Token {
  CellRows cell;
  uint32_t index;  // of the cell
  uint32_t tile;   // in it
  uint32_t token;  // of the tile
  bool present;

  // Tokens of the cell from the tile's first on.
  __device__ uint32_t Left() const {
    const uint32_t first = tile * kTileTokens;
    return cell.num_tokens > first ? cell.num_tokens - first : 0;
  }
};

__host__ __device__ inline uint32_t NumPairs(const CellPlan& plan, uint32_t num_cells) {
  return (num_cells + (plan.block_tiles_log2 == 0)) << plan.block_tiles_log2 >> 1;
}

// Of tiles 2 pair (lower lanes) and 2 pair + 1.
__device__ inline Token FindToken(const CellPlan& plan, const CellRows* cells, uint32_t num_cells,
                                  uint32_t pair) {
  const uint32_t lane = threadIdx.x % 32;
  const uint32_t tile = pair * 2 + lane / kTileTokens;
  Token t = {};
  t.index = tile >> plan.block_tiles_log2;
  t.tile = tile & ((1u << plan.block_tiles_log2) - 1);
  t.token = lane % kTileTokens;
  if (t.index < num_cells) {
    t.cell = cells[t.index];
    t.present = t.token < t.Left();
  }
  return t;
}

// The warp's number in its launch, and how many there are. Through a shuffle, so that the compiler
// knows that a warp's lanes go the same way.
__device__ inline uint32_t WarpNumber() {
  return blockIdx.x * (blockDim.x / 32) + __shfl_sync(kAllLanes, threadIdx.x / 32, 0);
}
__device__ inline uint32_t NumWarps() { return gridDim.x * (blockDim.x / 32); }

__host__ __device__ constexpr uint32_t BytesOf(RowType type) {
  return type == RowType::kFp32 ? 4 : 2;
}

// Rows of a warp's tokens in shared memory, in the order of its lanes; padded, so that lanes that
// read together read from different banks.
template <RowType kType>
struct RowRoom {
  static constexpr uint32_t kChunks = kDim * BytesOf(kType) / 16;  // a row
  static constexpr uint32_t kPitch = kChunks * 16 + 16;
  static constexpr uint32_t kBytes = kWarpTokens * kPitch;

  uint32_t shared;  // address

  __device__ uint32_t RowOf(uint32_t lane) const { return shared + lane * kPitch; }

  // take(address in shared memory, address of a row's chunk, token) for all chunks of the rows of
  // the lane's tile, `rows` of its cell, that this lane copies.
  template <typename Byte, typename Take>
  __device__ void EachChunk(const Token& own, Byte* rows, size_t stride, const Take& take) const {
    const uint32_t half = threadIdx.x / kTileTokens % 2, chunk = threadIdx.x % kTileTokens;
    uint32_t to = shared + half * kTileTokens * kPitch + chunk * 16;
    Byte* from = rows + own.tile * kTileTokens * stride + chunk * 16;
#pragma unroll
    for (uint32_t t = 0; t < kTileTokens; ++t, to += kPitch, from += stride) {
#pragma unroll
      for (uint32_t i = 0; i < kChunks; i += 16) take(to + 16 * i, from + 16 * i, t);
    }
  }
};

// The transform's sign diagonal as what a row's words in shared memory are xored with.
template <RowType kType>
struct SignMasks {
  static constexpr uint32_t kWords = kDim * BytesOf(kType) / 4;

  // Word i of them. `inverted`: the other sign throughout.
  __device__ static uint32_t Word(const uint32_t (&signs)[kDim / 32], uint32_t i, bool inverted) {
    const auto sign = [&](uint32_t c) {
      return (signs[c / 32] >> c % 32 & 1) ^ (inverted ? 1 : 0);
    };
    if constexpr (kType == RowType::kFp32) return sign(i) << 31;
    return sign(2 * i) << 15 | sign(2 * i + 1) << 31;
  }
};

// The numbers of a row at `row`, their signs changed by the masks at `masks` if kSigned.
template <RowType kType, bool kSigned>
__device__ inline void LoadRow(uint32_t row, uint32_t masks, float (&x)[kDim]) {
  constexpr uint32_t kEach = 16 / BytesOf(kType);
#pragma unroll
  for (uint32_t i = 0; i < RowRoom<kType>::kChunks; ++i) {
    const uint4 chunk = LoadShared(row + 16 * i);
    uint32_t words[4] = {chunk.x, chunk.y, chunk.z, chunk.w};
    if constexpr (kSigned) {
      const uint4 mask = LoadShared(masks + 16 * i);
      words[0] ^= mask.x, words[1] ^= mask.y, words[2] ^= mask.z, words[3] ^= mask.w;
    }
#pragma unroll
    for (uint32_t w = 0; w < 4; ++w) {
      if constexpr (kType == RowType::kFp32) {
        x[kEach * i + w] = __uint_as_float(words[w]);
      } else {
        float2 both = {__uint_as_float(words[w] << 16), __uint_as_float(words[w] & 0xFFFF0000u)};
        if constexpr (kType == RowType::kFp16) {
          both = __half22float2(*reinterpret_cast<const __half2*>(&words[w]));
        }
        x[kEach * i + 2 * w] = both.x;
        x[kEach * i + 2 * w + 1] = both.y;
      }
    }
  }
}

// Stages h = 1, 2, ..., 64 of the Walsh-Hadamard transform.
__device__ inline void Walsh(float (&x)[kDim]) {
#pragma unroll
  for (uint32_t h = 1; h < kDim; h *= 2) {
#pragma unroll
    for (uint32_t i = 0; i < kDim; ++i) {
      if ((i & h) != 0) continue;
      const float a = x[i], b = x[i + h];
      x[i] = a + b;
      x[i + h] = a - b;
    }
  }
}

// Of f(0), ..., f(127), by halves.
template <typename F>
__device__ inline float TreeSum(const F& f) {
  float sums[16];
#pragma unroll
  for (uint32_t i = 0; i < 16; ++i) {
    const float even = (f(i) + f(i + 64)) + (f(i + 32) + f(i + 96));
    const float odd = (f(i + 16) + f(i + 80)) + (f(i + 48) + f(i + 112));
    sums[i] = even + odd;
  }
#pragma unroll
  for (uint32_t h = 8; h > 0; h /= 2) {
#pragma unroll
    for (uint32_t i = 0; i < h; ++i) sums[i] = sums[i] + sums[i + h];
  }
  return sums[0];
}

// |x|^2, and the sum of |x[i]|.
__device__ inline float Energy(const float (&x)[kDim]) {
  return TreeSum([&](uint32_t i) { return x[i] * x[i]; });
}
__device__ inline float AbsoluteSum(const float (&x)[kDim]) {
  return TreeSum([&](uint32_t i) { return fabsf(x[i]); });
}

// Two-bit codes of sixteen channels and of sixteen tokens (kernels/README.md, "Lines of values").
// A lane's word of channels has that of channel c at PlaceOf(c); a word of a line that of token t
// at PlaceOf(t).
__host__ __device__ constexpr uint32_t PlaceOf(uint32_t i) { return 2 * (i % 4 * 4 + i / 4); }

// From words of channels, a token a lane of the tile, to words of the line, a channel a lane; and
// back.
__device__ inline uint32_t Transpose(uint32_t x) {
  const auto swap = [&](uint32_t lane_bit, uint32_t shift, uint32_t low) {
    const bool upper = (threadIdx.x & lane_bit) != 0;
    const uint32_t keep = upper ? ~low : low;
    const uint32_t other = __shfl_xor_sync(kAllLanes, x, lane_bit);
    x = (x & keep) | (__funnelshift_l(other, other, upper ? 32 - shift : shift) & ~keep);
  };
  swap(1, 8, 0x00FF00FFu);
  swap(2, 16, 0x0000FFFFu);
  swap(4, 2, 0x33333333u);
  swap(8, 4, 0x0F0F0F0Fu);
  return x;
}

// To the nearest integer, ties to even, for |x| < 2^22.
constexpr float kRounder = 12582912.0f;
constexpr uint32_t kRounderBits = 0x4B400000;
__device__ inline float RoundNearest(float x) { return (x + kRounder) - kRounder; }

// A stored scale, to nearest even, below infinity; and back.
__device__ inline uint32_t ScaleBits(float x) {
  const float largest = __uint_as_float(0x7F7F8000u);
  const uint32_t bits = __float_as_uint(x < largest ? x : largest);
  return (bits + 0x3FFF + (bits >> 15 & 1)) >> 15;
}
__device__ inline float ScaleOf(uint32_t bits) { return __uint_as_float(bits << 15); }

// 2^exponent in three factors, multiplied one by one.
struct PowerOfTwo {
  float third, rest;

  __device__ explicit PowerOfTwo(int exponent) {
    third = scalbnf(1.0f, exponent / 3);
    rest = scalbnf(1.0f, exponent - 2 * (exponent / 3));
  }
  __device__ float operator()(float x) const { return x * third * third * rest; }
};

// Where a token's scale is: row 0 of keys, row 1 of rotated values.
__device__ inline uint8_t* ScaleAt(const CellPlan& plan, const Token& own, uint32_t row) {
  const uint32_t rows = plan.value_kind == ValueKind::kRotated ? 2 : 1;
  return own.cell.cell + plan.scales + ((own.tile * rows + row) * kTileTokens + own.token) * 2;
}

}  // namespace sketchkv::cuda
