#pragma once

#include "kernels/cuda/token_rows.cuh"

// Which codes stand for a token's coordinates: the unit that serves them best, the levels nearest
// to them in it, and the scale that follows (kernels/cpu/unit_search.inc, codes.inc).
namespace sketchkv::cuda {

constexpr float kUnitSteps = 21.0f;

// Of three-bit codes, whether a coordinate's bits are the highest ones of three nibbles.
__host__ __device__ constexpr bool IsSpread(uint32_t row) { return row % 32 >= 24; }

// Counts, and sums, of magnitudes by size, a column a lane: what a level that rises with the
// magnitude makes of all of them needs no more.
class Magnitudes {
 public:
  static constexpr uint32_t kWords = kBins * 32;  // of a warp

  // `room`: shared memory of the warp, [kBins][32].
  __device__ explicit Magnitudes(uint32_t* room) : column_(room + threadIdx.x % 32) {}

  __device__ void Clear() {
#pragma unroll
    for (uint32_t bin = 0; bin < kBins; ++bin) column_[bin * 32] = 0;
  }
  // No magnitude is more than 12 times the RMS of 128 of them, so that it stays a byte. An atomic
  // addition, since nothing then waits for the one before.
  __device__ void Add(float y, float steps) {
    const uint32_t byte = __float_as_uint(fabsf(y) * steps + kRounder);
    const uint32_t bin = min(byte, kRounderBits + kBins - 1);
    AddShared(SharedAddress(column_) - kRounderBits * 128 + bin * 128,
              byte * 256 + (1 - kRounderBits * 256));
  }
  // Afterwards of all magnitudes from each size on.
  __device__ void SumUp() {
    uint32_t sum = 0;
#pragma unroll
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

// A coordinate's code: its highest bit is `positive`. Levels and thresholds are the same on both
// sides of 0, so that the bits below, of a negative one, are those of its magnitude, inverted;
// callers do that for whole words.
struct Code {
  bool positive;
  bool upper, lower;  // of three bits, and of two the lower alone: of the magnitude
  float level;        // of the magnitude
};
// A coordinate on a threshold has the lower of its two levels. What a magnitude exceeds is told by
// its bits and then that of its sign, so that equal is enough for a negative one; thresholds come
// in that order.
template <uint32_t kBits>
__device__ Code CodeOf(const CodePlan& plan, float x) {
  const uint32_t bits = __float_as_uint(x), magnitude = __funnelshift_l(bits, bits, 1);
  Code code = {x > 0.0f, false, false, 0.0f};
  if constexpr (kBits == 2) {
    code.lower = magnitude > plan.thresholds[3];
    code.level = code.lower ? plan.levels[3] : plan.levels[2];
  } else {
    code.upper = magnitude > plan.thresholds[6];
    code.lower = magnitude > (code.upper ? plan.thresholds[7] : plan.thresholds[5]);
    const float low = code.upper ? plan.levels[6] : plan.levels[4];
    const float high = code.upper ? plan.levels[7] : plan.levels[5];
    code.level = code.lower ? high : low;
  }
  return code;
}

// <y, levels> and <levels, levels>: four sums by a row's number in its run of codes.
struct RowSums {
  float sums[4] = {};

  __device__ void Add(uint32_t row, float a, float b) { sums[row % 4] = sums[row % 4] + a * b; }
  __device__ float Total() const { return (sums[0] + sums[2]) + (sums[1] + sums[3]); }
};

// words->Add(i, code) for all coordinates y, and words->Store(piece) behind each 32 of them;
// returns the scale.
template <uint32_t kBits, typename Words>
__device__ float ChooseCodes(const CodePlan& codes, const CodePlan& spread, bool exact,
                             float energy, float inverse, const float (&y)[kDim], Words* words) {
  const auto code_of = [&](uint32_t i) {
    return CodeOf<kBits>(kBits == 3 && IsSpread(i) ? spread : codes, y[i] * inverse);
  };
  RowSums dot;
#pragma unroll
  for (uint32_t i = 0; i < kDim; ++i) {
    const Code code = code_of(i);
    dot.Add(i, fabsf(y[i]), code.level);  // y and its level have the same sign
    words->Add(i % 32, code);
    if (i % 32 == 31) words->Store(i / 32);
  }
  float over = dot.Total(), above = energy;
  if (!exact) {
    RowSums squares;
#pragma unroll
    for (uint32_t i = 0; i < kDim; ++i) {
      const float level = code_of(i).level;
      squares.Add(i, level, level);
    }
    above = over;
    over = squares.Total() * static_cast<float>(kDim);
  }
  return over > 0.0f ? above / over : 0.0f;
}

}  // namespace sketchkv::cuda
