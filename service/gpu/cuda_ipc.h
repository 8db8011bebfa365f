#pragma once

#include "service/gpu/ipc_cache.h"

namespace sketchkv::gpu {

// CUDA IPC on one card.
class CudaIpc final : public IpcOpener {
 public:
  explicit CudaIpc(int device) : device_(device) {}
  [[nodiscard]] absl::StatusOr<std::span<std::byte>> Open(const GpuIpcHandle& handle) override;
  void Close(std::span<std::byte> bytes) override;

 private:
  const int device_;
};

}  // namespace sketchkv::gpu
