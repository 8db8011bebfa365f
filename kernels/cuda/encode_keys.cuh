#pragma once

#include <type_traits>

#include "kernels/cuda/choose_codes.cuh"

// The keys of a warp's tokens, from rows in shared memory to their cells.
namespace sketchkv::cuda {

constexpr float kSqrtHalfPi = 1.25331413731550025f;

// What a part of cells is encoded with, by a warp.
template <RowType kType>
struct Work {
  RowRoom<kType> room;
  uint32_t masks;  // address in shared memory: SignMasks, a transform after the other
  uint32_t* bins;  // shared memory of the warp, for the search of units
  int exponent;    // of the cell: what it is divided by; 0 unless all is done again

  // The lane's row, in the signs of a transform if kSigned.
  template <bool kAgain, bool kSigned>
  __device__ void Load(uint32_t transform, float (&x)[kDim]) const {
    LoadRow<kType, kSigned>(room.RowOf(threadIdx.x % 32),
                            masks + transform * SignMasks<kType>::kWords * 4, x);
    if constexpr (!kAgain) return;
    const PowerOfTwo down(-exponent);
#pragma unroll
    for (float& y : x) y = down(y);
  }
};

// Warps of a thread block that are near each other in the code fetch it for each other: that of
// codes is more than the first cache of instructions holds.
template <bool kAgain>
__device__ inline void KeepTogether() {
  if constexpr (!kAgain) __syncthreads();
}

// A scale over 2^exponent to its place.
template <bool kAgain>
__device__ inline void StoreScale(float scale, int exponent, uint8_t* out) {
  if constexpr (kAgain) scale = PowerOfTwo(exponent)(scale);
  *reinterpret_cast<uint16_t*>(out) = static_cast<uint16_t>(ScaleBits(scale));
}

// Words of the lane's token in planes, 32 coordinates at a time.
class TwoBitWords {
 public:
  __device__ TwoBitWords(uint32_t* planes, bool present) : planes_(planes), present_(present) {}

  __device__ void Add(uint32_t i, const Code& code) {
    SetIf(code.positive, 2u << i % 16 * 2, &positive_[i / 16]);
    SetIf(code.lower, 1u << i % 16 * 2, &lower_[i / 16]);
  }
  __device__ void Store(uint32_t piece) {
    for (uint32_t w = 0; w < 2; ++w) {
      const uint32_t word = positive_[w] | (~(lower_[w] ^ positive_[w] >> 1) & 0x55555555u);
      if (planes_ != nullptr) planes_[(2 * piece + w) * kTileTokens] = present_ ? word : 0;
      positive_[w] = lower_[w] = 0;
    }
  }

 private:
  uint32_t* planes_;  // or null
  bool present_;
  uint32_t positive_[2] = {}, lower_[2] = {};
};
class ThreeBitWords {
 public:
  __device__ ThreeBitWords(uint32_t* planes, bool present) : planes_(planes), present_(present) {}

  __device__ void Add(uint32_t i, const Code& code) {
    if (!IsSpread(i)) {
      SetIf(code.positive, 4u << i % 8 * 4, &positive_[i / 8]);
      SetIf(code.upper, 2u << i % 8 * 4, &magnitude_[i / 8]);
      SetIf(code.lower, 1u << i % 8 * 4, &magnitude_[i / 8]);
    } else {  // the highest bit first
      AddSpread(3 * (i - 24), code.positive);
      AddSpread(3 * (i - 24) + 1, code.upper == code.positive);
      AddSpread(3 * (i - 24) + 2, code.lower == code.positive);
    }
  }
  __device__ void Store(uint32_t piece) {
    for (uint32_t w = 0; w < 3; ++w) {
      const uint32_t inverted = magnitude_[w] ^ (positive_[w] >> 1 | positive_[w] >> 2);
      const uint32_t word = positive_[w] | (~inverted & 0x33333333u) | spread_[w];
      if (planes_ != nullptr) planes_[(3 * piece + w) * kTileTokens] = present_ ? word : 0;
      positive_[w] = magnitude_[w] = spread_[w] = 0;
    }
  }

 private:
  __device__ void AddSpread(uint32_t nibble, bool bit) {
    SetIf(bit, 8u << nibble % 8 * 4, &spread_[nibble / 8]);
  }

  uint32_t* planes_;
  bool present_;
  uint32_t positive_[3] = {}, magnitude_[3] = {}, spread_[3] = {};
};

// Keys as codes. done(): rows are no longer needed.
template <uint32_t kBits, bool kAgain, RowType kType, typename Done>
__device__ float EncodeKeyCodes(const CodecPlan& plan, const Token& own, const Work<kType>& work,
                                uint32_t* planes, const Done& done) {
  float y[kDim];
  work.template Load<kAgain, true>(0, y);
  done();
  const float energy = Energy(y);
  KeepTogether<kAgain>();
  Walsh(y);
  KeepTogether<kAgain>();
  const float inverse = SearchUnit<kBits>(plan.keys, plan.spread, plan.unit_factors,
                                          plan.key_search_dot, plan.key_search_square, y,
                                          energy * static_cast<float>(kDim), Magnitudes(work.bins));
  KeepTogether<kAgain>();
  std::conditional_t<kBits == 3, ThreeBitWords, TwoBitWords> words(planes, own.present);
  return ChooseCodes<kBits>(plan.keys, plan.spread, plan.exact_key_scale, energy, inverse, y,
                            &words);
}

// Keys as signs.
template <bool kAgain, RowType kType, typename Done>
__device__ float SketchKeys(const CodecPlan& plan, const Work<kType>& work, uint32_t* planes,
                            const Done& done) {
  float energy = 0.0f, dot = 0.0f;
#pragma unroll 1
  for (uint32_t block = 0; block < kMaxKeyBlocks; ++block) {
    // The masks are inverted: a sign bit is then that of a coordinate above 0. A -0 comes of
    // channel 0 being one, and in no other way.
    float y[kDim];
    work.template Load<kAgain, true>(block, y);
    y[0] = y[0] + 0.0f;
    if (block == 0) {
      energy = Energy(y);
    } else {
      done();
    }
    Walsh(y);
#pragma unroll
    for (uint32_t w = 0; w < kDim / 32; ++w) {
      uint32_t word = 0;
#pragma unroll
      for (uint32_t i = 32; i > 0; --i) {
        word = __funnelshift_l(__float_as_uint(y[32 * w + i - 1]), word, 1);
      }
      if (planes != nullptr) planes[(4 * block + w) * kTileTokens] = word;
    }
    dot = dot + AbsoluteSum(y);
  }
  if (energy == 0.0f || dot == 0.0f) return 0.0f;
  return plan.exact_key_scale ? energy / dot : kSqrtHalfPi / 256.0f * sqrtf(energy);
}

// Zeros between the scales and the planes.
__device__ inline void ClearPadding(const CellPlan& plan, const Token& own) {
  const uint32_t rows = plan.value_kind == ValueKind::kRotated ? 2 : 1;
  const uint32_t end = plan.scales + (rows * 32 << plan.block_tiles_log2);
  if (own.cell.cell == nullptr || own.tile != 0) return;
  const uint32_t at = end + own.token * 2;
  if (at < plan.planes) *reinterpret_cast<uint16_t*>(own.cell.cell + at) = 0;
}

template <KeyKind kKeys>
struct KeyPart {
  static constexpr uint32_t kNumber = 0;
  static constexpr uint32_t kBlocksOfProcessor = 3;
  static constexpr uint32_t kTransforms = kKeys == KeyKind::kSigns ? kMaxKeyBlocks : 1;
  static constexpr bool kInverted = kKeys == KeyKind::kSigns;
  static constexpr bool kSearches = kKeys != KeyKind::kSigns;

  __device__ static const uint32_t (&SignsOf(const CellPlan& plan, uint32_t transform))[kDim / 32] {
    return plan.key_signs[transform];
  }

  template <bool kAgain, RowType kType, typename Done>
  __device__ static void Encode(const CodecPlan& plan, const Token& own, const Work<kType>& work,
                                const Done& done) {
    constexpr uint32_t kWords = kKeys == KeyKind::kThreeBits ? 12 : 8;
    auto* const planes = own.cell.cell == nullptr
                             ? nullptr
                             : reinterpret_cast<uint32_t*>(own.cell.cell + plan.cell.planes) +
                                   own.tile * kWords * kTileTokens + own.token;
    float scale;
    if constexpr (kKeys == KeyKind::kSigns) {
      scale = SketchKeys<kAgain>(plan, work, planes, done);
    } else {
      constexpr uint32_t kBits = kKeys == KeyKind::kThreeBits ? 3 : 2;
      scale = EncodeKeyCodes<kBits, kAgain>(plan, own, work, planes, done);
    }
    if (planes != nullptr) StoreScale<kAgain>(scale, work.exponent, ScaleAt(plan.cell, own, 0));
    ClearPadding(plan.cell, own);
  }
};

}  // namespace sketchkv::cuda
