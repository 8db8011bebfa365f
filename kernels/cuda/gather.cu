#include <algorithm>

#include "kernels/cuda/launching.cuh"

// Rows of queries to one place, and whether they are finite. A thread block has a kv head of a
// piece, its warps a row at a time.
namespace sketchkv::cuda {
namespace {

constexpr uint32_t kAtOnce = 4;  // loads of a lane under way

__global__ void __launch_bounds__(kThreads)
    Gather(const __grid_constant__ GatherArgs args, uint32_t heads) {
  AllowNextLaunch();
  const GatherArgs::Piece& piece = args.pieces[blockIdx.x / heads];
  const uint32_t head = blockIdx.x % heads;
  if (head >= piece.num_heads) return;
  const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  bool finite = true;
  for (uint32_t i = warp; i < piece.num_rows; i += kWarps) {
    const uint32_t row = piece.row_begin + i;
    const size_t from =
        (size_t{row / piece.group} * piece.num_heads + head) * piece.group + row % piece.group;
    const float* const in = piece.from + from * piece.dim;
    float* const out = piece.to + (size_t{head} * piece.num_rows + i) * piece.dim;
    for (uint32_t begin = lane; begin < piece.dim; begin += 32 * kAtOnce) {
      float x[kAtOnce] = {};
#pragma unroll
      for (uint32_t k = 0; k < kAtOnce; ++k) {
        if (begin + 32 * k < piece.dim) x[k] = __ldcg(in + begin + 32 * k);
      }
#pragma unroll
      for (uint32_t k = 0; k < kAtOnce; ++k) {
        if (begin + 32 * k < piece.dim) out[begin + 32 * k] = x[k];
        finite = finite && isfinite(x[k]);
      }
    }
  }
  if (!finite) *piece.not_finite = 1;
}

}  // namespace

cudaError_t LaunchGather(const GatherArgs& args, cudaStream_t stream) {
  uint32_t heads = 0;
  for (uint32_t i = 0; i < args.num_pieces; ++i) heads = std::max(heads, args.pieces[i].num_heads);
  if (heads == 0) return cudaSuccess;
  return LaunchKernel(Gather, args.num_pieces * heads, kThreads, 0, stream, args, heads);
}

}  // namespace sketchkv::cuda
