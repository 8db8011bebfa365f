#pragma once

#include "kernels/cuda/query.cuh"

// Scales of a step's values, made into what products of halves take, once for all queries and where
// they lie. Pairs are of tokens as in PackWeights; each is over 4^p for tokens 4p and on of a tile,
// which takes back where their codes lie in a line.
namespace sketchkv::cuda {

// Scales are first divided by a power of two that leaves less than 2. With these factors products
// with weights stay below 2^15, and scales keep nine bits down to 2^-18 of the largest.
constexpr float kRangeFactor = 1024.0f;
constexpr float kRotatedFactor = 16.0f;
constexpr float kZeroFactor = 8.0f;  // of scale times zero

// What the two bits of a rotated value's code add, in units of kTwoBitUnit; the upper one counts 2.
constexpr float kLowerBit = kTwoBitHigh - kTwoBitLow;
constexpr float kUpperBit = (kTwoBitHigh + kTwoBitLow) / 2;

// The scales as stored that lane l makes into halves: ranges: eight of tile l / 8, group l % 8 / 2,
// and their zeros; else four, two of which another lane has as well.
template <typename Shape>
struct StoredScales {
  uint4 scales, zeros;
};

template <typename Shape>
__device__ inline StoredScales<Shape> LoadStored(uint32_t stage, uint32_t lane) {
  const uint32_t tile = lane / 8, j = lane % 8;
  StoredScales<Shape> stored = {};
  if constexpr (Shape::kHasRanges) {
    stored.scales = LoadShared(stage + Shape::Ranges(tile, j / 2 * 4 + j % 2));
    stored.zeros = LoadShared(stage + Shape::Ranges(tile, j / 2 * 4 + j % 2 + 2));
  } else {
    const uint2 four =
        LoadSharedPair(stage + Shape::kScales + tile * Shape::kScaleBytes + 32 + j / 2 * 8);
    stored.scales.x = four.x;
    stored.scales.y = four.y;
  }
  return stored;
}

// Of the step, as stored. All lanes get the same.
template <typename Shape>
__device__ inline uint32_t LargestScale(const StoredScales<Shape>& stored) {
  const uint4& s = stored.scales;
  const uint32_t pair = __vmaxu2(__vmaxu2(s.x, s.y), __vmaxu2(s.z, s.w));
  return __reduce_max_sync(0xFFFFFFFF, max(pair & 0xFFFF, pair >> 16));
}

// Two scales as floats.
__device__ inline float2 UnpackScales(uint32_t pair) {
  // What is left of the other one is a sign bit.
  return {fabsf(__uint_as_float(pair << 15)), __uint_as_float(pair >> 1 & 0x7FFF8000u)};
}

// Two zeros as floats: a zero more 2^15 as the last bits of 2^23 is a float less 2^23 + 2^15.
__device__ inline float2 UnpackZeros(uint32_t pair) {
  const uint32_t bits = pair ^ 0x80008000u;
  return {__uint_as_float(__byte_perm(bits, 0x4B000000u, 0x7610)) - 8421376.0f,
          __uint_as_float(__byte_perm(bits, 0x4B000000u, 0x7632)) - 8421376.0f};
}

// Ranges: pairs of scales and of scales times zeros take the places of scales and zeros. Rotated
// values: pairs for the lower bits take those of the keys' scales, pairs for the upper bits those
// of the values'. `factor`: the power of two. All lanes are done with what is overwritten.
template <typename Shape>
__device__ inline void StoreHalves(const StoredScales<Shape>& stored, float factor, uint32_t stage,
                                   uint32_t lane) {
  const uint32_t tile = lane / 8, j = lane % 8;
  if constexpr (Shape::kHasRanges) {
    const uint32_t scales[4] = {stored.scales.x, stored.scales.y, stored.scales.z, stored.scales.w};
    const uint32_t zeros[4] = {stored.zeros.x, stored.zeros.y, stored.zeros.z, stored.zeros.w};
    uint32_t placed[4], shifts[4];
    float place = factor * (j % 2 == 0 ? kRangeFactor : kRangeFactor / 16);
    const float zero_factor = factor * (kZeroFactor / 16);
#pragma unroll
    for (uint32_t i = 0; i < 4; i += 2) {
      const float2 s0 = UnpackScales(scales[i]), s1 = UnpackScales(scales[i + 1]);
      const float2 z0 = UnpackZeros(zeros[i]), z1 = UnpackZeros(zeros[i + 1]);
      placed[i] = Halves(s0.x * place, s1.x * place);
      placed[i + 1] = Halves(s0.y * place, s1.y * place);
      shifts[i] = Halves(s0.x * zero_factor * z0.x, s1.x * zero_factor * z1.x);
      shifts[i + 1] = Halves(s0.y * zero_factor * z0.y, s1.y * zero_factor * z1.y);
      place *= 0.25f;
    }
    StoreShared(stage + Shape::Ranges(tile, j / 2 * 4 + j % 2),
                make_uint4(placed[0], placed[1], placed[2], placed[3]));
    StoreShared(stage + Shape::Ranges(tile, j / 2 * 4 + j % 2 + 2),
                make_uint4(shifts[0], shifts[1], shifts[2], shifts[3]));
  } else {
    const float place = factor *
                        (j % 2 == 0 ? kRotatedFactor * kLowerBit : kRotatedFactor * kUpperBit) *
                        __uint_as_float((127 - j / 2 * 2) << 23);
    const float2 s0 = UnpackScales(stored.scales.x), s1 = UnpackScales(stored.scales.y);
    StoreShared(stage + Shape::kScales + tile * Shape::kScaleBytes + j % 2 * 32 + j / 2 * 8,
                make_uint2(Halves(s0.x * place, s1.x * place), Halves(s0.y * place, s1.y * place)));
  }
}

}  // namespace sketchkv::cuda
