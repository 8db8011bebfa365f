#pragma once

#include <type_traits>

#include "kernels/cuda/known_kernels.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/ptx.cuh"

// From what is known when a kernel is launched to what is known when it is compiled.
namespace sketchkv::cuda {

// f(constant) with the plan's kind of keys, or values, as a std::integral_constant.
template <typename F>
cudaError_t WithKeyKind(const CellPlan& plan, const F& f) {
  switch (plan.key_kind) {
    case KeyKind::kSigns:
      return f(std::integral_constant<KeyKind, KeyKind::kSigns>());
    case KeyKind::kTwoBits:
      return f(std::integral_constant<KeyKind, KeyKind::kTwoBits>());
    case KeyKind::kThreeBits:
      return f(std::integral_constant<KeyKind, KeyKind::kThreeBits>());
  }
  return cudaErrorInvalidValue;
}
template <typename F>
cudaError_t WithValueKind(const CellPlan& plan, const F& f) {
  switch (plan.value_kind) {
    case ValueKind::kRotated:
      return f(std::integral_constant<ValueKind, ValueKind::kRotated>());
    case ValueKind::kRanges:
      return f(std::integral_constant<ValueKind, ValueKind::kRanges>());
  }
  return cudaErrorInvalidValue;
}

template <typename F>
cudaError_t WithRowType(RowType type, const F& f) {
  switch (type) {
    case RowType::kBf16:
      return f(std::integral_constant<RowType, RowType::kBf16>());
    case RowType::kFp16:
      return f(std::integral_constant<RowType, RowType::kFp16>());
    case RowType::kFp32:
      return f(std::integral_constant<RowType, RowType::kFp32>());
  }
  return cudaErrorInvalidValue;
}

// shared_bytes: of each thread block, beside what the kernel declares.
template <typename... Params>
cudaError_t LaunchKernel(void (*kernel)(Params...), uint32_t blocks, uint32_t threads,
                         uint32_t shared_bytes, cudaStream_t stream, const Params&... params) {
  bool may_begin_early = false;
  const cudaError_t prepared =
      PrepareKernel(reinterpret_cast<const void*>(kernel), shared_bytes, &may_begin_early);
  if (prepared != cudaSuccess) return prepared;
  kernel<<<blocks, threads, shared_bytes, stream>>>(params...);
  return cudaGetLastError();
}

// The same for a kernel that calls WaitForLaunchBefore: as soon as the thread blocks of the kernel
// before it in the stream have called AllowNextLaunch or ended, if the card can.
template <typename... Params>
cudaError_t LaunchEarly(void (*kernel)(Params...), uint32_t blocks, uint32_t threads,
                        uint32_t shared_bytes, cudaStream_t stream, const Params&... params) {
  bool may_begin_early = false;
  const cudaError_t prepared =
      PrepareKernel(reinterpret_cast<const void*>(kernel), shared_bytes, &may_begin_early);
  if (prepared != cudaSuccess) return prepared;
  cudaLaunchAttribute early{};
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = may_begin_early ? 1 : 0;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(blocks);
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = &early;
  config.numAttrs = 1;
  return cudaLaunchKernelEx(&config, kernel, params...);
}

// Whether a kernel is launched by LaunchKernel or by LaunchEarly.
enum class Begin { kInOrder, kEarly };

// Either of them, for `pieces` of work that warps take in turn: as many thread blocks as the card
// runs at a time, `resident` a processor, or as there is work for.
template <typename... Params>
cudaError_t LaunchPersistent(void (*kernel)(Params...), Begin begin, uint32_t pieces,
                             uint32_t resident, uint32_t shared_bytes, cudaStream_t stream,
                             const Params&... params) {
  int device = 0, processors = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) {
    error = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  }
  if (error != cudaSuccess) return error;
  const uint32_t wanted = (pieces + kWarps - 1) / kWarps;
  const uint32_t most = static_cast<uint32_t>(processors) * resident;
  const uint32_t blocks = wanted < most ? wanted : most;
  return begin == Begin::kEarly
             ? LaunchEarly(kernel, blocks, kThreads, shared_bytes, stream, params...)
             : LaunchKernel(kernel, blocks, kThreads, shared_bytes, stream, params...);
}

}  // namespace sketchkv::cuda
