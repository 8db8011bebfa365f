// Exact attention with vdpbf16ps. Built with its own flags; includes nothing whose inline functions
// another file may share.
#include <immintrin.h>

#include "tests/bench/exact_kernels.h"

namespace sketchkv::bench {
namespace {

constexpr size_t kRow = 128;   // channels
constexpr size_t kTile = 64;   // tokens whose keys, then values, pass through the first-level cache
constexpr size_t kChunks = 4;  // registers of a row
constexpr size_t kAhead = 8192;  // bytes

bool Supported() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512bf16");
}

struct alignas(64) Queries {
  __m512bh chunk[8][kChunks];
};

void Load(const float* queries, uint32_t count, Queries* out) {
  for (uint32_t q = 0; q < count; ++q) {
    for (size_t i = 0; i < kChunks; ++i) {
      const float* at = queries + q * kRow + i * 32;
      out->chunk[q][i] = _mm512_cvtne2ps_pbh(_mm512_loadu_ps(at + 16), _mm512_loadu_ps(at));
    }
  }
}

inline __m512bh Chunk(const uint16_t* row, size_t i) {
  return reinterpret_cast<__m512bh>(_mm512_load_si512(row + i * 32));
}

// Four rows' sums, still apart in the four 128-bit lanes.
inline __m512 Fold(__m512 a, __m512 b, __m512 c, __m512 d) {
  const __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
  const __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
  const __m512d x = _mm512_castps_pd(ab), y = _mm512_castps_pd(cd);
  return _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(x, y)),
                       _mm512_castpd_ps(_mm512_unpackhi_pd(x, y)));
}

// Lane j of the result: the four sums of the j-th argument.
inline __m512 FoldLanes(__m512 a, __m512 b, __m512 c, __m512 d) {
  const __m512 ab =
      _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xDD));
  const __m512 cd =
      _mm512_add_ps(_mm512_shuffle_f32x4(c, d, 0x88), _mm512_shuffle_f32x4(c, d, 0xDD));
  return _mm512_add_ps(_mm512_shuffle_f32x4(ab, cd, 0x88), _mm512_shuffle_f32x4(ab, cd, 0xDD));
}

// Four queries over some keys, a multiple of 4.
void Score4(const uint16_t* keys, size_t tokens, const __m512bh (*queries)[kChunks], float* scores,
            size_t stride) {
  for (size_t t = 0; t < tokens; t += 4) {
    const uint16_t* rows = keys + t * kRow;
    __m512 sum[4][4];  // [query][key]
    for (size_t i = 0; i < kChunks; ++i) {
      for (size_t k = 0; k < 4; ++k) {
        const __m512bh key = Chunk(rows + k * kRow, i);
        _mm_prefetch(reinterpret_cast<const char*>(rows + k * kRow + i * 32) + kAhead, _MM_HINT_T0);
        for (size_t q = 0; q < 4; ++q) {
          sum[q][k] =
              _mm512_dpbf16_ps(i == 0 ? _mm512_setzero_ps() : sum[q][k], queries[q][i], key);
        }
      }
    }
    __m512 folded[4];
    for (size_t q = 0; q < 4; ++q) folded[q] = Fold(sum[q][0], sum[q][1], sum[q][2], sum[q][3]);
    const __m512 all = FoldLanes(folded[0], folded[1], folded[2], folded[3]);
    _mm_storeu_ps(scores + t, _mm512_extractf32x4_ps(all, 0));
    _mm_storeu_ps(scores + stride + t, _mm512_extractf32x4_ps(all, 1));
    _mm_storeu_ps(scores + 2 * stride + t, _mm512_extractf32x4_ps(all, 2));
    _mm_storeu_ps(scores + 3 * stride + t, _mm512_extractf32x4_ps(all, 3));
  }
}

void Score1(const uint16_t* keys, size_t tokens, const __m512bh* query, float* scores) {
  for (size_t t = 0; t < tokens; t += 16) {
    __m512 folded[4];
    for (size_t group = 0; group < 4; ++group) {
      const uint16_t* rows = keys + (t + group * 4) * kRow;
      __m512 sum[4];
      for (size_t k = 0; k < 4; ++k) {
        sum[k] = _mm512_setzero_ps();
        for (size_t i = 0; i < kChunks; ++i) {
          const uint16_t* row = rows + k * kRow;
          _mm_prefetch(reinterpret_cast<const char*>(row + i * 32) + kAhead, _MM_HINT_T0);
          sum[k] = _mm512_dpbf16_ps(sum[k], query[i], Chunk(row, i));
        }
      }
      folded[group] = Fold(sum[0], sum[1], sum[2], sum[3]);
    }
    _mm512_storeu_ps(scores + t, FoldLanes(folded[0], folded[1], folded[2], folded[3]));
  }
}

void Score(const uint16_t* keys, size_t tokens, const float* queries, uint32_t num_queries,
           float* scores, size_t stride) {
  Queries prepared;
  Load(queries, num_queries, &prepared);
  // The second four of eight find their keys in the first-level cache, the next ones on their way.
  const size_t step = num_queries > 4 ? 16 : kTile;
  for (size_t t = 0; t < tokens; t += step) {
    const uint16_t* tile = keys + t * kRow;
    if (num_queries == 1) {
      Score1(tile, step, prepared.chunk[0], scores + t);
      continue;
    }
    for (uint32_t q = 0; q < num_queries; q += 4) {
      Score4(tile, step, prepared.chunk + q, scores + q * stride + t, stride);
    }
  }
}

// Of 2^f, |f| <= 1/2, below the first.
constexpr float kExp2[] = {1.3333558e-3f, 9.6181291e-3f, 5.5504109e-2f,
                           2.4022651e-1f, 6.9314718e-1f, 1.0f};

// e^x for x <= 0, to some 1e-7.
inline __m512 Exp(__m512 x) {
  const __m512 y = _mm512_mul_ps(x, _mm512_set1_ps(1.44269504f));
  const __m512 n = _mm512_roundscale_ps(y, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m512 f = _mm512_sub_ps(y, n);
  __m512 p = _mm512_set1_ps(1.5403530e-4f);
  for (const float c : kExp2) p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(c));
  return _mm512_scalef_ps(p, n);
}

// Running softmax of four queries and their weighted sums of values. Channels stand in the order
// that unpacking two rows gives: register 2i of a row's chunk i has channels 0-3 of each 8,
// register 2i + 1 the others.
struct alignas(64) Running {
  __m512 out[4][2 * kChunks];
  float max[4];
  float sum[4];
  float keep[4];                               // what a new maximum leaves of the sums before
  alignas(64) uint32_t weights[4][kTile / 2];  // bf16 of two tokens each
};

void Weigh(const float* scores, float scale, Running* run) {
  for (size_t q = 0; q < 4; ++q) {
    __m512 x[kTile / 16];
    __m512 top = _mm512_set1_ps(-__builtin_inff());
    for (size_t i = 0; i < kTile / 16; ++i) {
      x[i] = _mm512_mul_ps(_mm512_loadu_ps(scores + q * kTile + i * 16), _mm512_set1_ps(scale));
      top = _mm512_max_ps(top, x[i]);
    }
    const float tile_max = _mm512_reduce_max_ps(top);
    const float max = tile_max > run->max[q] ? tile_max : run->max[q];
    run->keep[q] = _mm512_cvtss_f32(Exp(_mm512_set1_ps(run->max[q] - max)));
    run->max[q] = max;
    __m512 sum = _mm512_setzero_ps();
    for (size_t i = 0; i < kTile / 16; ++i) {
      const __m512 weight = Exp(_mm512_sub_ps(x[i], _mm512_set1_ps(max)));
      sum = _mm512_add_ps(sum, weight);
      _mm256_store_si256(reinterpret_cast<__m256i*>(run->weights[q] + i * 8),
                         reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(weight)));
    }
    run->sum[q] = run->sum[q] * run->keep[q] + _mm512_reduce_add_ps(sum);
  }
}

// Half of the channels at a time: what fits the registers.
void AddValues(const uint16_t* values, size_t half, Running* run) {
  __m512 out[4][4];
  for (size_t q = 0; q < 4; ++q) {
    for (size_t i = 0; i < 4; ++i) {
      out[q][i] = _mm512_mul_ps(run->out[q][half * 4 + i], _mm512_set1_ps(run->keep[q]));
    }
  }
  for (size_t t = 0; t < kTile; t += 2) {
    const uint16_t* row = values + t * kRow + half * 64;
    __m512i pairs[4];
    for (size_t i = 0; i < 2; ++i) {
      const __m512i a = _mm512_load_si512(row + i * 32), b = _mm512_load_si512(row + kRow + i * 32);
      _mm_prefetch(reinterpret_cast<const char*>(row + i * 32) + kAhead, _MM_HINT_T0);
      _mm_prefetch(reinterpret_cast<const char*>(row + kRow + i * 32) + kAhead, _MM_HINT_T0);
      pairs[2 * i] = _mm512_unpacklo_epi16(a, b);
      pairs[2 * i + 1] = _mm512_unpackhi_epi16(a, b);
    }
    for (size_t q = 0; q < 4; ++q) {
      const __m512i weight = _mm512_set1_epi32(static_cast<int>(run->weights[q][t / 2]));
      for (size_t i = 0; i < 4; ++i) {
        out[q][i] = _mm512_dpbf16_ps(out[q][i], reinterpret_cast<__m512bh>(weight),
                                     reinterpret_cast<__m512bh>(pairs[i]));
      }
    }
  }
  for (size_t q = 0; q < 4; ++q) {
    for (size_t i = 0; i < 4; ++i) run->out[q][half * 4 + i] = out[q][i];
  }
}

void Attend4(const uint16_t* keys, const uint16_t* values, size_t tokens, const float* queries,
             float scale, float* out) {
  Queries prepared;
  Load(queries, 4, &prepared);
  Running run = {};
  for (float& max : run.max) max = -__builtin_inff();
  alignas(64) float scores[4 * kTile];
  for (size_t t = 0; t < tokens; t += kTile) {
    Score4(keys + t * kRow, kTile, prepared.chunk, scores, kTile);
    Weigh(scores, scale, &run);
    AddValues(values + t * kRow, 0, &run);
    AddValues(values + t * kRow, 1, &run);
  }
  for (size_t q = 0; q < 4; ++q) {
    const float* sums = reinterpret_cast<const float*>(run.out[q]);
    for (size_t c = 0; c < kRow; ++c) {
      const size_t lane = c % 32 / 8, half = c % 8 / 4;
      out[q * kRow + c] = sums[(c / 32 * 2 + half) * 16 + lane * 4 + c % 4] / run.sum[q];
    }
  }
}

uint64_t Read(const void* data, size_t bytes) {
  const char* at = static_cast<const char*>(data);
  __m512i sum[4] = {};
  for (size_t i = 0; i < bytes; i += 256) {
    for (size_t j = 0; j < 4; ++j) {
      _mm_prefetch(at + i + j * 64 + kAhead, _MM_HINT_T0);
      sum[j] = _mm512_add_epi64(sum[j], _mm512_load_si512(at + i + j * 64));
    }
  }
  return static_cast<uint64_t>(_mm512_reduce_add_epi64(
      _mm512_add_epi64(_mm512_add_epi64(sum[0], sum[1]), _mm512_add_epi64(sum[2], sum[3]))));
}

}  // namespace

const ExactKernels kExactAvx512Bf16 = {"avx512_bf16", Supported, Score, Attend4, Read};

}  // namespace sketchkv::bench
