// The same for any machine: what the compiler makes of plain loops. Also the check of the others.
#include <cmath>
#include <cstring>
#include <vector>

#include "tests/bench/exact_kernels.h"

namespace sketchkv::bench {
namespace {

constexpr size_t kRow = 128;

float FromBf16(uint16_t half) {
  const uint32_t bits = uint32_t{half} << 16;
  float value = 0;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

void Score(const uint16_t* keys, size_t tokens, const float* queries, uint32_t num_queries,
           float* scores, size_t stride) {
  for (size_t t = 0; t < tokens; ++t) {
    float key[kRow];
    for (size_t c = 0; c < kRow; ++c) key[c] = FromBf16(keys[t * kRow + c]);
    for (uint32_t q = 0; q < num_queries; ++q) {
      float lanes[16] = {};
      for (size_t c = 0; c < kRow; ++c) lanes[c % 16] += key[c] * queries[q * kRow + c];
      float sum = 0;
      for (const float lane : lanes) sum += lane;
      scores[q * stride + t] = sum;
    }
  }
}

void Attend4(const uint16_t* keys, const uint16_t* values, size_t tokens, const float* queries,
             float scale, float* out) {
  std::vector<float> weights(4 * tokens);
  Score(keys, tokens, queries, 4, weights.data(), tokens);
  for (size_t q = 0; q < 4; ++q) {
    float* const of_query = weights.data() + q * tokens;
    float max = of_query[0], sum = 0;
    for (size_t t = 0; t < tokens; ++t) max = std::fmax(max, of_query[t]);
    float sums[kRow] = {};
    for (size_t t = 0; t < tokens; ++t) {
      const float weight = std::exp((of_query[t] - max) * scale);
      sum += weight;
      for (size_t c = 0; c < kRow; ++c) sums[c] += weight * FromBf16(values[t * kRow + c]);
    }
    for (size_t c = 0; c < kRow; ++c) out[q * kRow + c] = sums[c] / sum;
  }
}

uint64_t Read(const void* data, size_t bytes) {
  uint64_t sums[8] = {};
  for (size_t i = 0; i < bytes; i += sizeof(sums)) {
    uint64_t words[8];
    std::memcpy(words, static_cast<const char*>(data) + i, sizeof(words));
    for (size_t j = 0; j < 8; ++j) sums[j] += words[j];
  }
  uint64_t sum = 0;
  for (const uint64_t part : sums) sum += part;
  return sum;
}

}  // namespace

const ExactKernels kExactScalar = {"scalar", [] { return true; }, Score, Attend4, Read};

const ExactKernels& BestExactKernels() {
#if defined(__x86_64__)
  if (kExactAvx512Bf16.supported()) return kExactAvx512Bf16;
  if (kExactAvx2.supported()) return kExactAvx2;
#endif
  return kExactScalar;
}

}  // namespace sketchkv::bench
