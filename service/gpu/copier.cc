#include "service/gpu/copier.h"

#include <algorithm>
#include <cstring>

#include "kernels/base/status_macros.h"

namespace sketchkv::gpu {
namespace {

constexpr size_t kHalf = size_t{1} << 20;

}  // namespace

absl::Status CopyUp(Lane* lane, std::span<const std::byte> from, std::byte* to) {
  for (size_t begin = 0, half = 0; begin < from.size(); begin += kHalf, half ^= 1) {
    const size_t bytes = std::min(kHalf, from.size() - begin);
    if (begin >= 2 * kHalf) SKETCHKV_RETURN_IF_ERROR(lane->WaitForHalf(half));
    std::memcpy(lane->host(half * kHalf), from.data() + begin, bytes);
    SKETCHKV_RETURN_IF_CUDA_ERROR(cudaMemcpyAsync(to + begin, lane->host(half * kHalf), bytes,
                                                  cudaMemcpyHostToDevice, lane->stream()));
    SKETCHKV_RETURN_IF_ERROR(lane->MarkHalf(half));
  }
  return lane->Wait();
}

absl::Status CopyDown(Lane* lane, std::span<const std::byte> from, std::byte* to) {
  const auto start = [&](size_t begin) -> absl::Status {
    const size_t half = begin / kHalf % 2;
    const size_t bytes = std::min(kHalf, from.size() - begin);
    SKETCHKV_RETURN_IF_CUDA_ERROR(cudaMemcpyAsync(lane->host(half * kHalf), from.data() + begin,
                                                  bytes, cudaMemcpyDeviceToHost, lane->stream()));
    return lane->MarkHalf(half);
  };
  if (!from.empty()) SKETCHKV_RETURN_IF_ERROR(start(0));
  for (size_t begin = 0; begin < from.size(); begin += kHalf) {
    const size_t half = begin / kHalf % 2;
    if (begin + kHalf < from.size()) SKETCHKV_RETURN_IF_ERROR(start(begin + kHalf));
    SKETCHKV_RETURN_IF_ERROR(lane->WaitForHalf(half));
    std::memcpy(to + begin, lane->host(half * kHalf), std::min(kHalf, from.size() - begin));
  }
  return absl::OkStatus();
}

}  // namespace sketchkv::gpu
