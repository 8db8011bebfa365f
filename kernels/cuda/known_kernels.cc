#include "kernels/cuda/known_kernels.h"

#include <map>
#include <mutex>
#include <utility>

namespace sketchkv::cuda {
namespace {

// The code of this architecture and later ones waits for the launch before it (ptx.cuh).
constexpr int kFirstEarlyPtx = 90;

struct Known {
  uint32_t shared_bytes = 0;
  bool may_begin_early = false;
};

cudaError_t Ask(const void* kernel, uint32_t shared_bytes, Known* known) {
  cudaFuncAttributes attributes;
  const cudaError_t asked = cudaFuncGetAttributes(&attributes, kernel);
  if (asked != cudaSuccess) return asked;
  known->shared_bytes = shared_bytes;
  known->may_begin_early = attributes.ptxVersion >= kFirstEarlyPtx;
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                              static_cast<int>(shared_bytes));
}

}  // namespace

cudaError_t PrepareKernel(const void* kernel, uint32_t shared_bytes, bool* may_begin_early) {
  static std::mutex mu;
  // By kernel and card. Never destroyed: launches may go on while the process ends.
  static auto& known_kernels = *new std::map<std::pair<const void*, int>, Known>;
  int device = 0;
  const cudaError_t found = cudaGetDevice(&device);
  if (found != cudaSuccess) return found;
  const std::lock_guard<std::mutex> lock(mu);
  const auto it = known_kernels.find({kernel, device});
  if (it != known_kernels.end() && it->second.shared_bytes >= shared_bytes) {
    *may_begin_early = it->second.may_begin_early;
    return cudaSuccess;
  }
  Known known;
  const cudaError_t asked = Ask(kernel, shared_bytes, &known);
  if (asked != cudaSuccess) return asked;
  known_kernels[{kernel, device}] = known;
  *may_begin_early = known.may_begin_early;
  return cudaSuccess;
}

}  // namespace sketchkv::cuda
