#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace sketchkv::cuda {

// Lets `kernel` have so much shared memory of a thread block on the current card, and says whether
// its code there knows of launches that begin early. Asks CUDA at the first launch alone: each
// question takes microseconds where the caller's caches are cold, a launch not many more.
// cudaErrorInvalidValue: the card has not so much.
[[nodiscard]] cudaError_t PrepareKernel(const void* kernel, uint32_t shared_bytes,
                                        bool* may_begin_early);

}  // namespace sketchkv::cuda
