#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <span>
#include <utility>

#include "absl/status/statusor.h"
#include "kernels/base/status_macros.h"
#include "service/gpu/cuda_status.h"

namespace sketchkv::gpu {

// Memory of the card, or pinned memory of the host. Movable.
template <auto kAllocate, auto kFree>
class Buffer {
 public:
  // RESOURCE_EXHAUSTED when there is not so much.
  [[nodiscard]] static absl::StatusOr<Buffer> Create(size_t bytes) {
    Buffer buffer;
    void* data = nullptr;
    SKETCHKV_RETURN_IF_ERROR(CudaStatus(kAllocate(&data, bytes), "memory of or for the card"));
    buffer.bytes_ = {static_cast<std::byte*>(data), bytes};
    return buffer;
  }
  Buffer() = default;
  Buffer(Buffer&& other) noexcept : bytes_(std::exchange(other.bytes_, {})) {}
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  ~Buffer() {
    if (!bytes_.empty()) (void)kFree(bytes_.data());
  }

  [[nodiscard]] std::byte* data() const { return bytes_.data(); }
  [[nodiscard]] size_t size() const { return bytes_.size(); }
  [[nodiscard]] std::span<std::byte> bytes() const { return bytes_; }

 private:
  std::span<std::byte> bytes_;
};

inline cudaError_t AllocateDevice(void** data, size_t bytes) { return cudaMalloc(data, bytes); }
inline cudaError_t AllocatePinned(void** data, size_t bytes) {
  return cudaHostAlloc(data, bytes, cudaHostAllocDefault);
}

using DeviceBuffer = Buffer<AllocateDevice, cudaFree>;
using PinnedBuffer = Buffer<AllocatePinned, cudaFreeHost>;

}  // namespace sketchkv::gpu
