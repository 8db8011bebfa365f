// Built with its own flags; includes nothing whose inline functions another file may share.
#include "tests/bench/qjl_steps.h"

#include <immintrin.h>

namespace sketchkv::bench::qjl {

bool Supported() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

void Widen(const uint16_t* rows, size_t stride, size_t tokens, float* out) {
  for (size_t t = 0; t < tokens; ++t) {
    for (size_t c = 0; c < kDim; c += 8) {
      const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows + t * stride + c));
      const __m256i wide = _mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16);
      _mm256_storeu_ps(out + t * kDim + c, _mm256_castsi256_ps(wide));
    }
  }
}

void TakeOutliers(const float* keys, uint8_t* channels, float* outliers) {
  float energy[kDim] = {};
  for (size_t t = 0; t < kGroupTokens; ++t) {
    for (size_t c = 0; c < kDim; ++c) energy[c] += keys[t * kDim + c] * keys[t * kDim + c];
  }
  for (size_t o = 0; o < kOutliers; ++o) {
    size_t largest = 0;
    for (size_t c = 1; c < kDim; ++c) largest = energy[c] > energy[largest] ? c : largest;
    channels[o] = static_cast<uint8_t>(largest);
    energy[largest] = -1.0f;
  }
  for (size_t t = 0; t < kGroupTokens; ++t) {
    for (size_t o = 0; o < kOutliers; ++o) {
      outliers[t * kOutliers + o] = keys[t * kDim + channels[o]];
    }
  }
}

void Norms(const float* keys, const float* outliers, float* inlier_norms, float* outlier_norms) {
  for (size_t t = 0; t < kGroupTokens; ++t) {
    __m256 sum = _mm256_setzero_ps();
    for (size_t c = 0; c < kDim; c += 8) {
      const __m256 x = _mm256_loadu_ps(keys + t * kDim + c);
      sum = _mm256_fmadd_ps(x, x, sum);
    }
    float all = 0.0f, of_outliers = 0.0f;
    for (size_t lane = 0; lane < 8; ++lane) all += sum[lane];
    for (size_t o = 0; o < kOutliers; ++o) {
      of_outliers += outliers[t * kOutliers + o] * outliers[t * kOutliers + o];
    }
    inlier_norms[t] = __builtin_sqrtf(all > of_outliers ? all - of_outliers : 0.0f);
    outlier_norms[t] = __builtin_sqrtf(of_outliers);
  }
}

void PackSigns(const float* projected, const float* outlier_projected, size_t count,
               uint32_t* inlier_signs, uint32_t* outlier_signs) {
  for (size_t i = 0; i < count; i += 32) {
    uint32_t inlier = 0, outlier = 0;
    for (size_t j = 0; j < 32; j += 8) {
      const __m256 o = _mm256_loadu_ps(outlier_projected + i + j);
      const __m256 rest = _mm256_sub_ps(_mm256_loadu_ps(projected + i + j), o);
      inlier |= static_cast<uint32_t>(_mm256_movemask_ps(rest)) << j;
      outlier |= static_cast<uint32_t>(_mm256_movemask_ps(o)) << j;
    }
    inlier_signs[i / 32] = inlier;
    outlier_signs[i / 32] = outlier;
  }
}

void QuantizeValues(const float* values, size_t tokens, uint8_t* codes, float* ranges) {
  for (size_t group = 0; group < tokens * kDim / kValueGroup; ++group) {
    const float* x = values + group * kValueGroup;
    float low = x[0], high = x[0];
    for (size_t c = 1; c < kValueGroup; ++c) {
      low = x[c] < low ? x[c] : low;
      high = x[c] > high ? x[c] : high;
    }
    const float scale = (high - low) / 3.0f, inverse = scale > 0.0f ? 1.0f / scale : 0.0f;
    ranges[2 * group] = low;
    ranges[2 * group + 1] = scale;
    uint8_t level[kValueGroup];
    for (size_t c = 0; c < kValueGroup; ++c) {
      level[c] = static_cast<uint8_t>(static_cast<int>((x[c] - low) * inverse + 0.5f));
    }
    for (size_t c = 0; c < kValueGroup; c += 4) {
      codes[(group * kValueGroup + c) / 4] = static_cast<uint8_t>(
          level[c] | level[c + 1] << 2 | level[c + 2] << 4 | level[c + 3] << 6);
    }
  }
}

}  // namespace sketchkv::bench::qjl
