#pragma once

#include "kernels/cuda/token_rows.cuh"

// Which codes stand for a token's coordinates: the unit that serves them best, the levels nearest
// to them in it, and the scale that follows (kernels/cpu/unit_search.inc, codes.inc).
namespace sketchkv::cuda {

constexpr float kUnitSteps = 21.0f;
constexpr uint32_t kBins = 64;  // magnitudes that the search for a unit tells apart

// Counts, and sums, of magnitudes by size, a column a lane: what a level that rises with the
// magnitude makes of all of them needs no more.
class Magnitudes {
 public:
  // `room`: shared memory of the warp, [kBins][32].
  __device__ Magnitudes(uint32_t* room, uint32_t lane) : column_(room + lane) {}

  __device__ void Clear() {
#pragma unroll 8
    for (uint32_t bin = 0; bin < kBins; ++bin) column_[bin * 32] = 0;
  }
  __device__ void Add(float y, float steps) {
    const float bounded = fabsf(y) * steps;
    const uint32_t byte =
        __float_as_uint((bounded < 255.0f ? bounded : 255.0f) + 12582912.0f) & 0xFF;
    column_[min(byte, kBins - 1) * 32] += 1 + (byte << 8);
  }
  // Afterwards of all magnitudes from each size on.
  __device__ void SumUp() {
    uint32_t sum = 0;
#pragma unroll 8
    for (uint32_t bin = kBins; bin > 0; --bin) {
      sum += column_[(bin - 1) * 32];
      column_[(bin - 1) * 32] = sum;
    }
  }
  // <magnitudes, levels> and <levels, levels> of one unit tried.
  template <uint32_t kSteps>
  __device__ void Try(const CodePlan& codes, uint32_t trial, uint32_t* dot,
                      uint32_t* square) const {
    const uint32_t all = column_[0], base = codes.base[trial];
    *dot += base * (all >> 8);
    *square += base * base * (all & 0xFF);
#pragma unroll
    for (uint32_t s = 0; s < kSteps; ++s) {
      const auto& step = codes.steps[trial][s];
      const uint32_t above = column_[step.at * 32];
      *dot += step.rise * (above >> 8);
      *square += step.square_rise * (above & 0xFF);
    }
  }

 private:
  uint32_t* column_;
};

// 1 / unit of the codes of y; 0 if there is nothing in it. projected_energy: |y|^2.
template <uint32_t kBits>
__device__ float SearchUnit(const CodePlan& codes, const CodePlan& spread,
                            const float (&factors)[kTrials], float search_dot, float search_square,
                            const float (&y)[kDim], float projected_energy, Magnitudes magnitudes) {
  constexpr uint32_t kSteps = kBits == 3 ? 3 : 1;
  const float mean = projected_energy / static_cast<float>(kDim);
  const float inverse_rms = mean > 0.0f ? 1.0f / sqrtf(mean) : 0.0f;
  const float steps = inverse_rms * kUnitSteps;
  uint32_t dots[kTrials] = {}, squares[kTrials] = {};
  const auto part = [&](bool of_spread, const CodePlan& plan) {
    magnitudes.Clear();
#pragma unroll
    for (uint32_t i = 0; i < kDim; ++i) {
      if (kBits != 3 || IsSpread(i) == of_spread) magnitudes.Add(y[i], steps);
    }
    magnitudes.SumUp();
#pragma unroll
    for (uint32_t t = 0; t < kTrials; ++t) magnitudes.Try<kSteps>(plan, t, &dots[t], &squares[t]);
  };
  part(false, codes);
  if (kBits == 3) part(true, spread);
  float best = 0.0f, best_factor = 1.0f;
#pragma unroll
  for (uint32_t t = 0; t < kTrials; ++t) {
    const float dot = static_cast<float>(dots[t]) * search_dot;
    const float square = static_cast<float>(squares[t]) * search_square;
    const float merit = dot * dot / square;
    if (merit > best) {
      best = merit;
      best_factor = factors[t];
    }
  }
  return inverse_rms / best_factor;
}

// The code of a coordinate in units, and its level.
struct Code {
  uint32_t bits;
  float level;
};
// Levels and thresholds are the same on both sides of 0, and a coordinate on a threshold has the
// lower of its two levels. What a magnitude exceeds is told by its bits, one more below 0, where
// equal is enough. Without branches, and without a table that would be in slow memory.
template <uint32_t kBits>
__device__ Code CodeOf(const CodePlan& plan, float x) {
  constexpr uint32_t kHalf = 1u << (kBits - 1);
  const bool positive = x > 0.0f;
  const uint32_t magnitude = (__float_as_uint(x) & 0x7FFFFFFFu) + (positive ? 0 : 1);
  uint32_t above = kHalf;
  float level = plan.levels[kHalf];
#pragma unroll
  for (uint32_t i = 1; i < kHalf; ++i) {
    const bool exceeds = magnitude > __float_as_uint(plan.thresholds[kHalf + i]);
    above = exceeds ? kHalf + i : above;
    level = exceeds ? plan.levels[kHalf + i] : level;
  }
  return {positive ? above : 2 * kHalf - 1 - above, positive ? level : -level};
}

// <y, levels> and <levels, levels>: four sums by a row's number in its run of codes.
struct RowSums {
  float dot[4] = {}, square[4] = {};

  __device__ void Add(uint32_t row, float y, float level) {
    dot[row % 4] = dot[row % 4] + y * level;
    square[row % 4] = square[row % 4] + level * level;
  }
  __device__ static float Total(const float (&x)[4]) { return (x[0] + x[2]) + (x[1] + x[3]); }
  __device__ float Scale(bool exact, float energy) const {
    const float d = Total(dot);
    const float over = exact ? d : Total(square) * static_cast<float>(kDim);
    return over > 0.0f ? (exact ? energy : d) / over : 0.0f;
  }
};

}  // namespace sketchkv::cuda
