// Built with its own flags; includes nothing whose inline functions another file may share.
#include <immintrin.h>

#include "tests/bench/popcount_kernel.h"

namespace sketchkv::bench {
namespace {

constexpr size_t kAhead = 4096;  // bytes of codes

// Eight codes, a qword lane each, against all planes of one query.
template <int kPlanes>
inline __m512i Count(const __m512i* code, const PlaneQuery& query) {
  __m512i total = _mm512_setzero_si512();
  for (int plane = 0; plane < kPlanes; ++plane) {
    __m512i count = _mm512_setzero_si512();
    for (size_t word = 0; word < kCodeWords; ++word) {
      const __m512i mask = _mm512_set1_epi64(static_cast<long long>(query.planes[plane][word]));
      count = _mm512_add_epi64(count, _mm512_popcnt_epi64(_mm512_and_si512(code[word], mask)));
    }
    total = _mm512_add_epi64(_mm512_slli_epi64(total, 1), count);
  }
  return total;
}

template <int kPlanes>
void Scores4(const uint64_t* codes, const float* scales, const float* ones, size_t num_codes,
             const PlaneQuery* queries, float* scores, size_t stride) {
  for (size_t k = 0; k < num_codes; k += 8) {
    __m512i code[kCodeWords];
    for (size_t word = 0; word < kCodeWords; ++word) {
      const uint64_t* at = codes + k * kCodeWords + word * 8;
      _mm_prefetch(reinterpret_cast<const char*>(at) + kAhead, _MM_HINT_T0);
      code[word] = _mm512_load_si512(at);
    }
    _mm_prefetch(reinterpret_cast<const char*>(scales + k) + kAhead / 8, _MM_HINT_T0);
    _mm_prefetch(reinterpret_cast<const char*>(ones + k) + kAhead / 8, _MM_HINT_T0);
    const __m256 scale = _mm256_loadu_ps(scales + k), set = _mm256_loadu_ps(ones + k);
    for (size_t q = 0; q < 4; ++q) {
      const PlaneQuery& query = queries[q];
      const __m256 count = _mm512_cvtepi64_ps(Count<kPlanes>(code, query));
      // 2 * (what stands at set bits) - everything
      __m256 sum =
          _mm256_fmadd_ps(count, _mm256_set1_ps(2 * query.step), _mm256_set1_ps(-query.sum));
      sum = _mm256_fmadd_ps(set, _mm256_set1_ps(2 * query.low), sum);
      _mm256_storeu_ps(scores + q * stride + k, _mm256_mul_ps(scale, sum));
    }
  }
}

}  // namespace

bool PopcountSupported() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vpopcntdq");
}

void PopcountScores4(const uint64_t* codes, const float* scales, const float* ones,
                     size_t num_codes, const PlaneQuery* queries, int num_planes, float* scores,
                     size_t stride) {
  const auto kernel = num_planes == 4 ? Scores4<4> : Scores4<8>;
  kernel(codes, scales, ones, num_codes, queries, scores, stride);
}

}  // namespace sketchkv::bench
