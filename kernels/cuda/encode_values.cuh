#pragma once

#include "kernels/cuda/encode_keys.cuh"

// The values of a warp's tokens, from rows in shared memory to their cells.
namespace sketchkv::cuda {

constexpr float kNegligibleRange = 0x1p-90f;

// The lines of the lane's tile.
class Lines {
 public:
  __device__ Lines(const CellPlan& plan, const Token& own)
      : present_(own.present), stored_(own.cell.cell != nullptr) {
    if (stored_)
      lines_ = reinterpret_cast<uint32_t*>(own.cell.cell + plan.values) + own.tile * kDim;
  }
  // Codes of channels 16 line and on, at the places that Transpose wants.
  __device__ void Store(uint32_t line, uint32_t codes) const {
    const uint32_t x = Transpose(present_ ? codes : 0);
    // The lane has a channel now.
    if (stored_) lines_[line * kTileTokens + threadIdx.x % kTileTokens] = x;
  }

 private:
  const bool present_, stored_;
  uint32_t* lines_ = nullptr;
};

// Rotated codes, 32 channels at a time.
class LineWords {
 public:
  __device__ explicit LineWords(const Lines& lines) : lines_(lines) {}

  __device__ void Add(uint32_t i, const Code& code) {
    SetIf(code.positive, 2u << PlaceOf(i % 16), &positive_[i / 16]);
    SetIf(code.lower, 1u << PlaceOf(i % 16), &lower_[i / 16]);
  }
  __device__ void Store(uint32_t piece) {
    for (uint32_t w = 0; w < 2; ++w) {
      lines_.Store(2 * piece + w, positive_[w] | (~(lower_[w] ^ positive_[w] >> 1) & 0x55555555u));
      positive_[w] = lower_[w] = 0;
    }
  }

 private:
  const Lines& lines_;
  uint32_t positive_[2] = {}, lower_[2] = {};
};

// Min-max codes of group number `group` of 32 channels, x.
template <bool kAgain>
__device__ inline void EncodeRange(const float* x, uint32_t group, int exponent, uint8_t* ranges,
                                   const Lines& lines) {
  float low = x[0], high = x[0];
#pragma unroll
  for (uint32_t c = 1; c < 32; ++c) {
    low = fminf(low, x[c]);
    high = fmaxf(high, x[c]);
  }
  const float by_range = (high - low) / 3.0f, by_zero = fabsf(low) / 2040.0f;
  float scale = by_range > by_zero ? by_range : by_zero;
  scale = scale > kNegligibleRange ? scale : 0.0f;
  if constexpr (kAgain) scale = PowerOfTwo(exponent)(scale);
  const uint32_t bits = ScaleBits(scale);
  scale = ScaleOf(bits);
  if constexpr (kAgain) scale = PowerOfTwo(-exponent)(scale);
  const float inverse = scale > 0.0f ? 1.0f / scale : 0.0f;
  float zero = low * inverse * 16.0f;
  zero = zero < 32767.0f ? zero : 32767.0f;
  zero = RoundNearest(zero > -32767.0f ? zero : -32767.0f);
  if (ranges != nullptr) {
    *reinterpret_cast<uint16_t*>(ranges) = static_cast<uint16_t>(bits);
    *reinterpret_cast<int16_t*>(ranges + 32) = static_cast<int16_t>(zero);
  }
  const float offset = zero * 0.0625f;
#pragma unroll
  for (uint32_t w = 0; w < 2; ++w) {
    uint32_t word = 0, rounders = 0;
#pragma unroll
    for (uint32_t c = 0; c < 16; ++c) {
      float code = x[16 * w + c] * inverse - offset;
      // Rounding of scale and zero moves a code by less than a half, unless the scale is so small
      // that it has lost bits.
      if constexpr (kAgain) {
        code = code < 3.0f ? code : 3.0f;
        code = code > 0.0f ? code : 0.0f;
      }
      word += __float_as_uint(code + kRounder) << PlaceOf(c);
      rounders += kRounderBits << PlaceOf(c);
    }
    lines.Store(2 * group + w, word - rounders);
  }
}

template <bool kAgain>
__device__ inline void EncodeRanges(const CellPlan& plan, const Token& own, int exponent,
                                    const float (&x)[kDim], const Lines& lines) {
  uint8_t* ranges = nullptr;
  if (own.cell.cell != nullptr) {
    ranges = own.cell.cell + plan.ranges + own.tile * (kDim / 32 * 64) + own.token * 2;
  }
#pragma unroll
  for (uint32_t group = 0; group < kDim / 32; ++group) {
    EncodeRange<kAgain>(x + 32 * group, group, exponent,
                        ranges == nullptr ? nullptr : ranges + 64 * group, lines);
  }
}

template <ValueKind kValues>
struct ValuePart {
  static constexpr bool kRotated = kValues == ValueKind::kRotated;
  static constexpr uint32_t kNumber = 1;
  static constexpr uint32_t kBlocksOfProcessor = kRotated ? 3 : 4;
  static constexpr uint32_t kTransforms = kRotated ? 1 : 0;
  static constexpr bool kInverted = false;
  static constexpr bool kSearches = kRotated;

  __device__ static const uint32_t (&SignsOf(const CellPlan& plan, uint32_t))[kDim / 32] {
    return plan.value_signs;
  }

  template <bool kAgain, RowType kType, typename Done>
  __device__ static void Encode(const CodecPlan& plan, const Token& own, const Work<kType>& work,
                                const Done& done) {
    float y[kDim];
    work.template Load<kAgain, kRotated>(0, y);
    done();
    const bool stored = own.cell.cell != nullptr;
    const Lines lines(plan.cell, own);
    if constexpr (kRotated) {
      const float energy = Energy(y);
      KeepTogether<kAgain>();
      Walsh(y);
      KeepTogether<kAgain>();
      const float inverse = SearchUnit<2>(plan.values, plan.values, plan.unit_factors,
                                          plan.value_search_dot, plan.value_search_square, y,
                                          energy * static_cast<float>(kDim), Magnitudes(work.bins));
      KeepTogether<kAgain>();
      LineWords words(lines);
      const float scale = ChooseCodes<2>(plan.values, plan.values, plan.exact_value_scale, energy,
                                         inverse, y, &words);
      if (stored) StoreScale<kAgain>(scale, work.exponent, ScaleAt(plan.cell, own, 1));
    } else {
      EncodeRanges<kAgain>(plan.cell, own, work.exponent, y, lines);
    }
  }
};

}  // namespace sketchkv::cuda
