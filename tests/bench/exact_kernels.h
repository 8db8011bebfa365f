#pragma once

#include <cstddef>
#include <cstdint>

// Our own exact kernels over bf16 keys and values of kDim channels: the honest ceiling of what a
// CPU does without a sketch. Plain pointers, so that files built for one instruction set share
// nothing with others.
namespace sketchkv::bench {

struct ExactKernels {
  const char* isa;
  bool (*supported)();
  // scores[q * stride + t] = <query q, key t>. keys: [tokens][128], 64-byte aligned; tokens a
  // multiple of 64; queries: [num_queries][128], num_queries 1 or a multiple of 4, at most 8.
  void (*score)(const uint16_t* keys, size_t tokens, const float* queries, uint32_t num_queries,
                float* scores, size_t stride);
  // out: [4][128], softmax(scale * scores) weighted sum of the values, of 4 queries.
  void (*attend4)(const uint16_t* keys, const uint16_t* values, size_t tokens, const float* queries,
                  float scale, float* out);
  // Reads every byte once; bytes a multiple of 4096.
  uint64_t (*read)(const void* data, size_t bytes);
};

extern const ExactKernels kExactAvx512Bf16;  // vdpbf16ps
extern const ExactKernels kExactAvx2;
extern const ExactKernels kExactScalar;

// The best this CPU supports.
[[nodiscard]] const ExactKernels& BestExactKernels();

}  // namespace sketchkv::bench
