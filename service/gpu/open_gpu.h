#pragma once

#include <chrono>
#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "service/engine/gpu.h"

namespace sketchkv {

struct GpuOptions {
  int device = 0;
  uint64_t tier_bytes = 0;                   // of the gpu tier; 0: three quarters of what is free
  std::chrono::microseconds batch_delay{0};  // for which a query waits for others
};

// A card of this machine, with the memory of its tier taken. NOT_FOUND: there is none, no driver,
// or this program was built without CUDA. RESOURCE_EXHAUSTED naming both numbers.
[[nodiscard]] absl::StatusOr<std::unique_ptr<Gpu>> OpenGpu(const GpuOptions& options);

}  // namespace sketchkv
