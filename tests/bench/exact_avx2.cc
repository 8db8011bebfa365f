// Exact attention for CPUs without vdpbf16ps. Built with its own flags; includes nothing whose
// inline functions another file may share.
#include <immintrin.h>

#include "tests/bench/exact_kernels.h"

namespace sketchkv::bench {
namespace {

constexpr size_t kRow = 128;     // channels
constexpr size_t kTile = 64;     // tokens
constexpr size_t kChunks = 8;    // of 16 channels
constexpr size_t kAhead = 4096;  // bytes

bool Supported() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

// Even and odd channels apart, as a register of bf16 falls into two of fp32.
struct alignas(32) Query {
  __m256 even[kChunks];
  __m256 odd[kChunks];
};

inline __m256 Even(__m256i x) { return _mm256_castsi256_ps(_mm256_slli_epi32(x, 16)); }
inline __m256 Odd(__m256i x) {
  return _mm256_castsi256_ps(_mm256_and_si256(x, _mm256_set1_epi32(-65536)));
}
inline __m256i Chunk(const uint16_t* row, size_t i) {
  return _mm256_load_si256(reinterpret_cast<const __m256i*>(row + i * 16));
}

void Load(const float* queries, uint32_t count, Query* out) {
  for (uint32_t q = 0; q < count; ++q) {
    float* even = reinterpret_cast<float*>(out[q].even);
    float* odd = reinterpret_cast<float*>(out[q].odd);
    for (size_t c = 0; c < kRow / 2; ++c) {
      even[c] = queries[q * kRow + 2 * c];
      odd[c] = queries[q * kRow + 2 * c + 1];
    }
  }
}

template <int kQueries>
void ScoreTile(const uint16_t* keys, const Query* queries, float* scores, size_t stride) {
  for (size_t t = 0; t < kTile; t += 2) {
    const uint16_t* rows = keys + t * kRow;
    __m256 sum[2][kQueries] = {};
    for (size_t i = 0; i < kChunks; ++i) {
      for (size_t k = 0; k < 2; ++k) {
        const __m256i key = Chunk(rows + k * kRow, i);
        if (i % 2 == 0) {
          _mm_prefetch(reinterpret_cast<const char*>(rows + k * kRow + i * 16) + kAhead,
                       _MM_HINT_T0);
        }
        for (size_t q = 0; q < kQueries; ++q) {
          sum[k][q] = _mm256_fmadd_ps(Even(key), queries[q].even[i], sum[k][q]);
          sum[k][q] = _mm256_fmadd_ps(Odd(key), queries[q].odd[i], sum[k][q]);
        }
      }
    }
    for (size_t k = 0; k < 2; ++k) {
      for (size_t q = 0; q < kQueries; ++q) {
        const __m128 half =
            _mm_add_ps(_mm256_castps256_ps128(sum[k][q]), _mm256_extractf128_ps(sum[k][q], 1));
        const __m128 pair = _mm_add_ps(half, _mm_movehl_ps(half, half));
        scores[q * stride + t + k] = _mm_cvtss_f32(_mm_add_ss(pair, _mm_movehdup_ps(pair)));
      }
    }
  }
}

void Score(const uint16_t* keys, size_t tokens, const float* queries, uint32_t num_queries,
           float* scores, size_t stride) {
  Query prepared[8];
  Load(queries, num_queries, prepared);
  for (size_t t = 0; t < tokens; t += kTile) {
    const uint16_t* tile = keys + t * kRow;
    if (num_queries == 1) {
      ScoreTile<1>(tile, prepared, scores + t, stride);
      continue;
    }
    for (uint32_t q = 0; q < num_queries; q += 4) {
      ScoreTile<4>(tile, prepared + q, scores + q * stride + t, stride);
    }
  }
}

// Of 2^f, |f| <= 1/2, below the first.
constexpr float kExp2[] = {1.3333558e-3f, 9.6181291e-3f, 5.5504109e-2f,
                           2.4022651e-1f, 6.9314718e-1f, 1.0f};

// e^x for x <= 0, to some 1e-7; 0 below -87.
inline __m256 Exp(__m256 x) {
  const __m256 y =
      _mm256_mul_ps(_mm256_max_ps(x, _mm256_set1_ps(-87.0f)), _mm256_set1_ps(1.44269504f));
  const __m256 n = _mm256_round_ps(y, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m256 f = _mm256_sub_ps(y, n);
  __m256 p = _mm256_set1_ps(1.5403530e-4f);
  for (const float c : kExp2) p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(c));
  return _mm256_castsi256_ps(
      _mm256_add_epi32(_mm256_castps_si256(p), _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23)));
}

struct alignas(32) Running {
  Query out[4];  // sums of even and odd channels
  float max[4];
  float sum[4];
  float keep[4];  // what a new maximum leaves of the sums before
  alignas(32) float weights[4][kTile];
};

void Weigh(const float* scores, float scale, Running* run) {
  for (size_t q = 0; q < 4; ++q) {
    float max = run->max[q];
    for (size_t t = 0; t < kTile; ++t) {
      run->weights[q][t] = scores[q * kTile + t] * scale;
      max = run->weights[q][t] > max ? run->weights[q][t] : max;
    }
    run->keep[q] = _mm256_cvtss_f32(Exp(_mm256_set1_ps(run->max[q] - max)));
    run->max[q] = max;
    __m256 sum = _mm256_setzero_ps();
    for (size_t t = 0; t < kTile; t += 8) {
      const __m256 x = _mm256_load_ps(run->weights[q] + t);
      const __m256 weight = Exp(_mm256_sub_ps(x, _mm256_set1_ps(max)));
      _mm256_store_ps(run->weights[q] + t, weight);
      sum = _mm256_add_ps(sum, weight);
    }
    run->sum[q] *= run->keep[q];
    for (size_t lane = 0; lane < 8; ++lane) run->sum[q] += sum[lane];
  }
}

void AddValues(const uint16_t* values, size_t i, Running* run) {
  __m256 even[4], odd[4];
  for (size_t q = 0; q < 4; ++q) {
    even[q] = _mm256_mul_ps(run->out[q].even[i], _mm256_set1_ps(run->keep[q]));
    odd[q] = _mm256_mul_ps(run->out[q].odd[i], _mm256_set1_ps(run->keep[q]));
  }
  for (size_t t = 0; t < kTile; ++t) {
    const __m256i value = Chunk(values + t * kRow, i);
    _mm_prefetch(reinterpret_cast<const char*>(values + t * kRow + i * 16) + kAhead, _MM_HINT_T0);
    for (size_t q = 0; q < 4; ++q) {
      const __m256 weight = _mm256_broadcast_ss(&run->weights[q][t]);
      even[q] = _mm256_fmadd_ps(Even(value), weight, even[q]);
      odd[q] = _mm256_fmadd_ps(Odd(value), weight, odd[q]);
    }
  }
  for (size_t q = 0; q < 4; ++q) {
    run->out[q].even[i] = even[q];
    run->out[q].odd[i] = odd[q];
  }
}

void Attend4(const uint16_t* keys, const uint16_t* values, size_t tokens, const float* queries,
             float scale, float* out) {
  Query prepared[4];
  Load(queries, 4, prepared);
  Running run = {};
  for (float& max : run.max) max = -1e30f;
  float scores[4 * kTile];
  for (size_t t = 0; t < tokens; t += kTile) {
    ScoreTile<4>(keys + t * kRow, prepared, scores, kTile);
    Weigh(scores, scale, &run);
    for (size_t i = 0; i < kChunks; ++i) AddValues(values + t * kRow, i, &run);
  }
  for (size_t q = 0; q < 4; ++q) {
    for (size_t c = 0; c < kRow / 2; ++c) {
      out[q * kRow + 2 * c] = reinterpret_cast<const float*>(run.out[q].even)[c] / run.sum[q];
      out[q * kRow + 2 * c + 1] = reinterpret_cast<const float*>(run.out[q].odd)[c] / run.sum[q];
    }
  }
}

uint64_t Read(const void* data, size_t bytes) {
  const char* at = static_cast<const char*>(data);
  __m256i sum[4] = {};
  for (size_t i = 0; i < bytes; i += 128) {
    _mm_prefetch(at + i + kAhead, _MM_HINT_T0);
    _mm_prefetch(at + i + 64 + kAhead, _MM_HINT_T0);
    for (size_t j = 0; j < 4; ++j) {
      sum[j] = _mm256_add_epi64(
          sum[j], _mm256_load_si256(reinterpret_cast<const __m256i*>(at + i + j * 32)));
    }
  }
  const __m256i all =
      _mm256_add_epi64(_mm256_add_epi64(sum[0], sum[1]), _mm256_add_epi64(sum[2], sum[3]));
  return static_cast<uint64_t>(all[0] + all[1] + all[2] + all[3]);
}

}  // namespace

const ExactKernels kExactAvx2 = {"avx2", Supported, Score, Attend4, Read};

}  // namespace sketchkv::bench
