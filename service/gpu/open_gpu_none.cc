// In place of cuda_gpu.cc where there is no CUDA.
#include "service/gpu/open_gpu.h"

namespace sketchkv {

absl::StatusOr<std::unique_ptr<Gpu>> OpenGpu(const GpuOptions& options) {
  return absl::NotFoundError("this program was built without CUDA");
}

}  // namespace sketchkv
