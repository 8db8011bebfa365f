#pragma once

#include <cuda_runtime_api.h>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace sketchkv::gpu {

// RESOURCE_EXHAUSTED: no memory left. UNAVAILABLE for anything else: an error of CUDA stays, and
// nothing that the card says after it means anything.
inline absl::Status CudaStatus(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return absl::OkStatus();
  const std::string message = absl::StrCat(what, ": ", cudaGetErrorString(error));
  if (error == cudaErrorMemoryAllocation) {
    (void)cudaGetLastError();  // this one does not stay
    return absl::ResourceExhaustedError(message);
  }
  return absl::UnavailableError(message);
}

#define SKETCHKV_RETURN_IF_CUDA_ERROR(call) \
  SKETCHKV_RETURN_IF_ERROR(::sketchkv::gpu::CudaStatus((call), #call))

}  // namespace sketchkv::gpu
