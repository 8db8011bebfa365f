#include "service/gpu/cuda_ipc.h"

#include <cuda.h>
#include <cudaTypedefs.h>
#include <cuda_runtime_api.h>

#include <cstring>

#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"
#include "service/gpu/cuda_status.h"

namespace sketchkv::gpu {
namespace {

static_assert(sizeof(cudaIpcMemHandle_t) == sizeof(GpuIpcHandle));

// A handle that is refused leaves the card as well as it was before.
absl::Status OpenError(cudaError_t error) {
  if (error == cudaErrorMemoryAllocation) return CudaStatus(error, "opening it");
  (void)cudaGetLastError();
  const cudaError_t state = cudaStreamQuery(nullptr);
  if (state != cudaSuccess && state != cudaErrorNotReady) return CudaStatus(state, "the card");
  if (error == cudaErrorDeviceUninitialized) {  // "invalid device context"
    return absl::InvalidArgumentError("it is of this server's own process");
  }
  return absl::InvalidArgumentError(
      absl::StrCat("the GPU knows no such allocation: ", cudaGetErrorString(error)));
}

// Of the allocation that begins at `base`. Only the driver's own interface says it.
absl::StatusOr<size_t> AllocationBytes(void* base) {
  void* entry = nullptr;
  cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
  SKETCHKV_RETURN_IF_CUDA_ERROR(cudaGetDriverEntryPointByVersion("cuMemGetAddressRange", &entry,
                                                                 3020, cudaEnableDefault, &found));
  if (found != cudaDriverEntryPointSuccess || entry == nullptr) {
    return absl::InternalError("this driver does not say how large an allocation is");
  }
  const auto get_range = reinterpret_cast<PFN_cuMemGetAddressRange_v3020>(entry);
  CUdeviceptr begin = 0;
  size_t bytes = 0;
  const CUresult result = get_range(&begin, &bytes, reinterpret_cast<CUdeviceptr>(base));
  if (result != CUDA_SUCCESS) {
    return absl::InternalError(absl::StrCat("the size of an opened allocation: error ", result));
  }
  return bytes - (reinterpret_cast<CUdeviceptr>(base) - begin);
}

}  // namespace

absl::StatusOr<std::span<std::byte>> CudaIpc::Open(const GpuIpcHandle& handle) {
  SKETCHKV_RETURN_IF_CUDA_ERROR(cudaSetDevice(device_));
  cudaIpcMemHandle_t cuda_handle;
  std::memcpy(&cuda_handle, handle.data(), handle.size());
  void* base = nullptr;
  const cudaError_t error =
      cudaIpcOpenMemHandle(&base, cuda_handle, cudaIpcMemLazyEnablePeerAccess);
  if (error != cudaSuccess) return OpenError(error);
  const absl::StatusOr<size_t> bytes = AllocationBytes(base);
  if (!bytes.ok()) {
    (void)cudaIpcCloseMemHandle(base);
    return bytes.status();
  }
  return std::span(static_cast<std::byte*>(base), *bytes);
}

void CudaIpc::Close(std::span<std::byte> bytes) {
  (void)cudaSetDevice(device_);
  // Where the card has failed, what is open goes with this process.
  if (cudaIpcCloseMemHandle(bytes.data()) != cudaSuccess) (void)cudaGetLastError();
}

}  // namespace sketchkv::gpu
