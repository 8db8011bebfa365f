#pragma once

#include "kernels/cuda/general/lanes.cuh"

namespace sketchkv::cuda {
namespace {

// clang-format off
#include "kernels/cpu/lane_math.inc"
#include "kernels/cpu/number_types.inc"
#include "kernels/cuda/general/channels.inc"
#include "kernels/cuda/general/kernels.inc"
// clang-format on

// Stage::Run(plan, args, item) for all items, dealt out to the workers.
template <typename Stage, typename Args>
__global__ void __launch_bounds__(kGeneralThreads)
    Work(const __grid_constant__ GeneralPlan plan, const __grid_constant__ Args args,
         GeneralScratch scratch, uint32_t num_items) {
  const uint32_t worker = blockIdx.x * kGeneralBlockWorkers + threadIdx.x / kLanes;
  LaneRoom::Start(scratch.data + size_t{worker} * plan.worker_bytes, plan.worker_bytes);
  const uint32_t workers = gridDim.x * kGeneralBlockWorkers;
  for (uint32_t item = worker; item < num_items; item += workers) Stage::Run(plan, args, item);
}

template <typename Stage, typename Args>
cudaError_t LaunchWork(const GeneralPlan& plan, const Args& args, const GeneralScratch& scratch,
                       uint64_t num_items, cudaStream_t stream) {
  if (num_items == 0) return cudaSuccess;
  if (num_items > 0xFFFFFFFFu || scratch.num_workers < kGeneralBlockWorkers) {
    return cudaErrorInvalidValue;
  }
  const uint64_t wanted = (num_items + kGeneralBlockWorkers - 1) / kGeneralBlockWorkers;
  const uint32_t room = scratch.num_workers / kGeneralBlockWorkers;
  const auto blocks = static_cast<uint32_t>(wanted < room ? wanted : room);
  Work<Stage, Args><<<blocks, kGeneralThreads, 0, stream>>>(plan, args, scratch,
                                                            static_cast<uint32_t>(num_items));
  return cudaGetLastError();
}

}  // namespace
}  // namespace sketchkv::cuda
