#pragma once

#include <cuda_fp16.h>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/ptx.cuh"

// A token a lane: what encoding and decoding do with the 128 numbers of one, in registers. Every
// operation is that of the CPU's kernels, rounded alone and in their order (these files are
// compiled without contraction), so that bytes are equal.
namespace sketchkv::cuda {

constexpr uint32_t kWarpTokens = 32;  // two tiles
constexpr uint32_t kTileLanes = 16;

// The token of its tile that a lane works for: such that bit k of what sixteen lanes vote on is bit
// 2 k of a line of 2-bit codes (kernels/README.md). Its own inverse.
__device__ inline uint32_t TokenOf(uint32_t lane) { return lane % 4 * 4 + lane / 4 % 4; }

// What a lane works on: none where there is no cell.
struct Token {
  CellRows cell;
  uint32_t index;  // of the cell
  uint32_t tile;   // in it
  uint32_t token;  // of the tile
  bool present;
};

__device__ inline Token FindToken(const CellPlan& plan, const CellRows* cells, uint32_t num_cells,
                                  uint32_t lane) {
  const uint32_t tile = (blockIdx.x * kWarps + threadIdx.x / 32) * 2 + lane / kTileLanes;
  Token t = {};
  t.index = tile >> plan.block_tiles_log2;
  t.tile = tile & ((1u << plan.block_tiles_log2) - 1);
  t.token = TokenOf(lane);
  if (t.index < num_cells) {
    t.cell = cells[t.index];
    t.present = t.tile * kTileLanes + t.token < t.cell.num_tokens;
  }
  return t;
}
// Thread blocks for all tiles.
inline uint32_t TileBlocks(const CellPlan& plan, uint32_t num_cells) {
  const uint64_t tiles = uint64_t{num_cells} << plan.block_tiles_log2;
  return static_cast<uint32_t>((tiles + 2 * kWarps - 1) / (2 * kWarps));
}

// Of three-bit codes, whether a coordinate's bits are the highest ones of three nibbles.
__device__ constexpr bool IsSpread(uint32_t row) { return row % 32 >= 24; }

// Rows of a warp's tokens in shared memory, in the order of its lanes; padded, so that lanes that
// read together read from different banks.
struct RowRoom {
  uint32_t shared;  // address
  RowType type;

  __host__ __device__ static constexpr uint32_t BytesOf(RowType type) {
    return type == RowType::kFp32 ? 4 : 2;
  }
  // Of a row, and of the warp's room for them.
  __host__ __device__ static constexpr uint32_t Pitch(RowType type) {
    return kDim * BytesOf(type) + 16;
  }
  __host__ __device__ static constexpr uint32_t Bytes(RowType type) {
    return kWarpTokens * Pitch(type);
  }
};

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

__device__ inline void ChangeSigns(const uint32_t (&signs)[kDim / 32], float (&x)[kDim]) {
#pragma unroll
  for (uint32_t c = 0; c < kDim; ++c) {
    const uint32_t sign = signs[c / 32] << (31 - c % 32) & 0x80000000u;
    x[c] = __uint_as_float(__float_as_uint(x[c]) ^ sign);
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

// To the nearest integer, ties to even, for |x| < 2^22.
__device__ inline float RoundNearest(float x) { return (x + 12582912.0f) - 12582912.0f; }

// A stored scale, to nearest even, below infinity; and back.
__device__ inline uint32_t ScaleBits(float x) {
  const uint32_t bits =
      __float_as_uint(x < __uint_as_float(0x7F7F8000u) ? x : __uint_as_float(0x7F7F8000u));
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

}  // namespace sketchkv::cuda
