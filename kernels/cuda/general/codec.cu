#include "kernels/cuda/general/work.cuh"

namespace sketchkv::cuda {
namespace {

struct CheckTiles {
  static __device__ void Run(const GeneralPlan& plan, const GeneralEncodeArgs& args, uint32_t i) {
    CheckTile(plan, args, i);
  }
};
struct PrepareCells {
  static __device__ void Run(const GeneralPlan& plan, const GeneralEncodeArgs& args, uint32_t i) {
    PrepareCell(plan, args, i);
  }
};
struct EncodeTiles {
  static __device__ void Run(const GeneralPlan& plan, const GeneralEncodeArgs& args, uint32_t i) {
    EncodeTile(plan, args, i);
  }
};
struct DecodeTiles {
  static __device__ void Run(const GeneralPlan& plan, const GeneralDecodeArgs& args, uint32_t i) {
    DecodeTile(plan, args, i);
  }
};

// Of a worker that only looks at a tile: more of them run at a time.
uint32_t TileBytes(const GeneralPlan& plan) {
  return 64 * ((plan.head_dim > plan.value_dim ? plan.head_dim : plan.value_dim) | 1);
}

constexpr uint32_t kZeroThreads = 128;
__global__ void ZeroCells(const GeneralCell* cells, size_t cell_bytes) {
  auto* const words = reinterpret_cast<uint4*>(cells[blockIdx.x].rows.cell);
  for (size_t i = threadIdx.x; i < cell_bytes / sizeof(uint4); i += blockDim.x) words[i] = {};
}

}  // namespace

cudaError_t LaunchGeneralEncode(const GeneralPlan& plan, const GeneralEncodeArgs& args,
                                cudaStream_t stream) {
  if (args.num_cells == 0) return cudaSuccess;
  ZeroCells<<<args.num_cells, kZeroThreads, 0, stream>>>(args.cells, plan.cell_bytes);
  cudaError_t error = cudaGetLastError();
  const uint64_t tiles = uint64_t{2} * args.num_cells * plan.num_tiles;
  if (error == cudaSuccess) {
    error = LaunchWork<CheckTiles>(plan, args, TileBytes(plan), tiles, stream);
  }
  if (error == cudaSuccess && (plan.block_mean || plan.outlier_groups > 0)) {
    error = LaunchWork<PrepareCells>(plan, args, plan.worker_bytes, args.num_cells, stream);
  }
  if (error != cudaSuccess) return error;
  return LaunchWork<EncodeTiles>(plan, args, plan.worker_bytes, tiles, stream);
}

cudaError_t LaunchGeneralDecode(const GeneralPlan& plan, const GeneralDecodeArgs& args,
                                cudaStream_t stream) {
  const uint64_t tiles = uint64_t{2} * args.num_cells * plan.num_tiles;
  return LaunchWork<DecodeTiles>(plan, args, plan.worker_bytes, tiles, stream);
}

}  // namespace sketchkv::cuda
