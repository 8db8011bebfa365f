#include "kernels/cuda/key_scores.cuh"
#include "kernels/cuda/launching.cuh"

// Scores of queries and compressed keys: as attention, without what stands behind the keys.
namespace sketchkv::cuda {
namespace {

// More bytes under way are no faster, and four of keys of three bits leave no room for a fourth
// thread block on a processor.
constexpr uint32_t kStages = 3;

// Scores of a step to memory, [query][stride]: of 64 tokens in a row. A lane has sixteen of query g
// and tile c; they go through `stage`, whose keys are no longer needed, so that lanes side by side
// write side by side.
template <typename Score>
__device__ inline void StoreScores(const float (&scores)[16], uint32_t stage, uint32_t lane,
                                   uint32_t num_queries, Score* out, size_t stride) {
  constexpr uint32_t kRowBytes = 64 * sizeof(Score);
  constexpr uint32_t kChunks = kRowBytes / kChunkBytes;  // of a row; c has a quarter
  constexpr uint32_t kRows = 32 / kChunks;               // that the warp writes at a time
  const uint32_t g = lane / 4, c = lane % 4;
  // Chunks are in another order in each row, for the banks' sake.
  const auto place = [&](uint32_t row, uint32_t chunk) {
    const uint32_t order = sizeof(Score) == 4 ? row % 2 * 4 ^ chunk / 4 : row % 2;
    return stage + row * kRowBytes + (chunk ^ order) * kChunkBytes;
  };
  __syncwarp();
#pragma unroll
  for (uint32_t i = 0; i < kChunks / 4; ++i) {
    uint4 chunk;
    if constexpr (sizeof(Score) == 4) {
      chunk = make_uint4(__float_as_uint(scores[4 * i]), __float_as_uint(scores[4 * i + 1]),
                         __float_as_uint(scores[4 * i + 2]), __float_as_uint(scores[4 * i + 3]));
    } else {
      const float* const x = scores + 8 * i;
      chunk = make_uint4(Halves(x[0], x[1]), Halves(x[2], x[3]), Halves(x[4], x[5]),
                         Halves(x[6], x[7]));
    }
    StoreShared(place(g, kChunks / 4 * c + i), chunk);
  }
  __syncwarp();
  for (uint32_t first = 0; first < num_queries; first += kRows) {
    const uint32_t row = first + lane / kChunks, at = lane % kChunks;
    if (row >= num_queries) break;
    // Nobody reads them soon.
    __stcs(reinterpret_cast<uint4*>(out + row * stride) + at, LoadShared(place(row, at)));
  }
}

template <KeyKind kKeys, ValueKind kValues, typename Score>
__global__ void __launch_bounds__(kThreads, 4)
    ScoreChains(const __grid_constant__ CellPlan plan, const __grid_constant__ ScoreArgs args) {
  using Shape = StepShape<kKeys, kValues, false>;
  extern __shared__ __align__(128) uint8_t shared[];
  __shared__ QueryRoom<kKeys> room;
  const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const uint32_t c = lane % 4;
  Segments segments(args.chain);
  for (Segment segment; segments.Next(&segment);) {
    StepRing<Shape, kStages> ring(plan, segment, SharedAddress(shared), warp, kWarps, lane);
    const size_t row = size_t{segment.pair} * args.num_queries;
    QueryOperands<kKeys> query;
    const QueryRows rows = LoadQueries<kWarps>(args.queries + row * kDim, args.num_queries);
    ring.Begin();
    ring.Fill();
    ProjectQueries(plan, rows, args.num_queries, &room);
    MakeOperands<kKeys, kWarps>(&room, &query);
    auto* const out = static_cast<Score*>(args.scores) + row * args.stride;
    for (uint32_t step = segment.begin + warp; step < segment.end; step += kWarps) {
      const uint32_t stage = ring.Next();
      float scores[16], scales[16];
      ScoreStep<Shape, kKeys>(query, stage, lane, scores);
      LoadScales(stage + Shape::kScales + c * Shape::kScaleBytes, scales);
#pragma unroll
      for (uint32_t t = 0; t < 16; ++t) scores[t] *= scales[t];
      StoreScores(scores, stage, lane, args.num_queries,
                  out + (step - segment.token_begin / 64) * 64, args.stride);
    }
    WaitForCopies<0>();
    __syncthreads();
  }
}

}  // namespace

cudaError_t LaunchScore(const CellPlan& plan, const ScoreArgs& args, cudaStream_t stream) {
  if (args.chain.num_thread_blocks == 0) return cudaSuccess;
  return WithKeyKind(plan, [&](auto keys) {
    return WithValueKind(plan, [&](auto values) {
      constexpr KeyKind kKeys = decltype(keys)::value;
      constexpr ValueKind kValues = decltype(values)::value;
      constexpr uint32_t kBytes =
          kWarps * StepRing<StepShape<kKeys, kValues, false>, kStages>::kBytes;
      const auto kernel =
          args.as_halves ? ScoreChains<kKeys, kValues, __half> : ScoreChains<kKeys, kValues, float>;
      return LaunchKernel(kernel, args.chain.num_thread_blocks, kThreads, kBytes, stream, plan,
                          args);
    });
  });
}

}  // namespace sketchkv::cuda
