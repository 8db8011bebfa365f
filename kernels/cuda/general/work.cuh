#pragma once

#include "kernels/cuda/general/lanes.cuh"
#include "kernels/cuda/launching.cuh"

namespace sketchkv::cuda {
namespace {

// clang-format off
#include "kernels/cpu/lane_math.inc"
#include "kernels/cpu/number_types.inc"
#include "kernels/cuda/general/channels.inc"
#include "kernels/cuda/general/kernels.inc"
// clang-format on

// Stage::Run(plan, args, item), an item a worker.
template <typename Stage, typename Args>
__global__ void __launch_bounds__(kGeneralThreads)
    Work(const __grid_constant__ GeneralPlan plan, const __grid_constant__ Args args,
         uint32_t worker_bytes, uint32_t num_items) {
  extern __shared__ __align__(64) uint8_t scratch[];
  const uint32_t worker = threadIdx.x / kLanes;
  const uint32_t item = blockIdx.x * (blockDim.x / kLanes) + worker;
  if (item >= num_items) return;
  LaneRoom::Start(scratch + worker * worker_bytes, worker_bytes);
  Stage::Run(plan, args, item);
}

// Two workers a thread block, or one where the card's shared memory is too small for two.
template <typename Stage, typename Args>
cudaError_t LaunchWork(const GeneralPlan& plan, const Args& args, uint32_t worker_bytes,
                       uint64_t num_items, cudaStream_t stream) {
  if (num_items == 0) return cudaSuccess;
  if (num_items > 0x7FFFFFFFu) return cudaErrorInvalidValue;
  const auto items = static_cast<uint32_t>(num_items);
  cudaError_t error = cudaSuccess;
  for (uint32_t workers = kMostWorkers; workers > 0; --workers) {
    error = LaunchKernel(Work<Stage, Args>, (items + workers - 1) / workers, workers * kLanes,
                         workers * worker_bytes, stream, plan, args, worker_bytes, items);
    if (error != cudaErrorInvalidValue) return error;
    cudaGetLastError();  // only the shared memory was too much
  }
  return error;
}

}  // namespace
}  // namespace sketchkv::cuda
