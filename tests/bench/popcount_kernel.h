#pragma once

#include <cstddef>
#include <cstdint>

// How RaBitQ scores bit codes: the query quantised to a few bits and cut into planes, each of them
// and-ed with a code and counted. Plain pointers, as exact_kernels.h.
namespace sketchkv::bench {

inline constexpr size_t kCodeWords = 4;  // of 64 bits

struct PlaneQuery {
  uint64_t planes[8][kCodeWords];  // the highest bit first
  float step;                      // a query coordinate is low + step * (bits of the planes)
  float low;
  float sum;  // of all coordinates, as quantised
};

[[nodiscard]] bool PopcountSupported();  // vpopcntq

// scores[q * stride + k] = scale_k * sum of +-coordinates of query q. codes: groups of eight codes,
// [groups][kCodeWords][8]; scales and ones (the bits set in each code): [num_codes], a multiple
// of 8.
void PopcountScores4(const uint64_t* codes, const float* scales, const float* ones,
                     size_t num_codes, const PlaneQuery* queries, int num_planes, float* scores,
                     size_t stride);

}  // namespace sketchkv::bench
