#include "kernels/cuda/key_scores.cuh"
#include "kernels/cuda/launching.cuh"
#include "kernels/cuda/merge.cuh"
#include "kernels/cuda/value_scales.cuh"

// Attention over compressed cells, one launch: the warps of a thread block take the steps of a
// segment in turn, each with a running maximum. The thread block that is the last of a (sequence,
// kv head) to arrive merges all partials.
namespace sketchkv::cuda {
namespace {

constexpr uint32_t kWideWarps = 12;  // as many as a multiprocessor runs
constexpr uint32_t kNarrowBlocks = kWideWarps / kWarps;
constexpr uint32_t kStages = 3;  // steps of a warp in shared memory: one at work, two on the way
constexpr uint32_t kWideBytes = 227 << 10;  // of shared memory, at most, that a wide block takes
constexpr float kLog2E = 1.44269504088896f;

// Weights, at most 1, are multiplied by it, so that as halves they keep eleven bits down to 2^-18.
constexpr float kWeightFactor = 16.0f;
constexpr float kWeightFactorLog2 = 4.0f;

// Two bits of a half that is read as a subnormal number count in steps of 2^-24.
template <ValueKind kValues>
constexpr float kOutFactor = 16777216.0f /
                             (kWeightFactor *
                              (kValues == ValueKind::kRotated ? kRotatedFactor : kRangeFactor));

// What a warp knows of its tokens so far. Of lane l: query g = l / 4 of max and sum; totals and
// sums of levels of queries 2c and 2c + 1, c = l % 4. All sums are times kWeightFactor.
struct Running {
  float max = -INFINITY;  // of logits times log2(e), of all lanes of the query
  float sum = 0.0f;       // of this lane's tokens
  uint32_t exponent = 0;  // biased: values' scales are over 2^(exponent - 127)
  // Sums of what codes of 0 add: of weights times scales (rotated values, in all lanes of two
  // queries), or times zeros as well (ranges, of group g % 4). The last two stay 0.
  float totals[4] = {};
  // [2 r + i]: channels ChannelOf(g, r, i) and the next one; halves of queries 2c and 2c + 1.
  float levels[kDim / 16][4] = {};
};

__device__ inline uint32_t ChannelOf(uint32_t g, uint32_t r, uint32_t i) {
  return 16 * (2 * r + g / 4) + 4 * (g % 4) + 2 * i;
}

// Multiplies what a warp summed of query g by `factor`, which each lane of that query has.
__device__ inline void Rescale(float factor, uint32_t lane, Running* running) {
  running->sum *= factor;
  const uint32_t c = lane % 4;
  const float even = __shfl_sync(0xFFFFFFFF, factor, 8 * c);
  const float odd = __shfl_sync(0xFFFFFFFF, factor, 8 * c + 4);
  running->totals[0] *= even;
  running->totals[1] *= odd;
#pragma unroll
  for (auto& level : running->levels) {
    level[0] *= even;
    level[1] *= odd;
    level[2] *= even;
    level[3] *= odd;
  }
}

// From logits times log2(e) to weights kWeightFactor * exp2(logit - max), in place.
__device__ inline void Softmax(uint32_t lane, float (&x)[16], Running* running) {
  float largest = -INFINITY;
#pragma unroll
  for (const float logit : x) largest = fmaxf(largest, logit);
  largest = fmaxf(largest, __shfl_xor_sync(0xFFFFFFFF, largest, 1));
  largest = fmaxf(largest, __shfl_xor_sync(0xFFFFFFFF, largest, 2));
  if (__any_sync(0xFFFFFFFF, largest > running->max)) {
    const float max = fmaxf(running->max, largest);
    Rescale(max == -INFINITY ? 1.0f : Exp2(running->max - max), lane, running);
    running->max = max;
  }
  const float max = (running->max == -INFINITY ? 0.0f : running->max) - kWeightFactorLog2;
#pragma unroll
  for (float& logit : x) {
    logit = Exp2(logit - max);
    running->sum += logit;
  }
}

// Raises the power of two that values' scales are divided by to that of `largest`, of 16 bits as
// stored, if need be. All lanes have the same.
__device__ inline void RaiseExponent(uint32_t largest, uint32_t lane, Running* running) {
  const uint32_t exponent = largest >> 8;
  if (exponent <= running->exponent) return;
  const int down = static_cast<int>(running->exponent) - static_cast<int>(exponent);
  const float factor = running->exponent == 0 ? 0.0f : scalbnf(1.0f, down);
  const float sum = running->sum;
  Rescale(factor, lane, running);
  running->sum = sum;
  running->exponent = exponent;
}

// Pairs of tokens' weights as halves: [2 p] of tokens 4p and 4p + 2, [2 p + 1] of the other two of
// the four.
__device__ inline void PackWeights(const float (&weights)[16], __half2 (&pairs)[8]) {
#pragma unroll
  for (uint32_t p = 0; p < 4; ++p) {
    pairs[2 * p] = __floats2half2_rn(weights[4 * p], weights[4 * p + 2]);
    pairs[2 * p + 1] = __floats2half2_rn(weights[4 * p + 1], weights[4 * p + 3]);
  }
}

__device__ inline uint32_t Bits(__half2 x) { return *reinterpret_cast<const uint32_t*>(&x); }
__device__ inline __half2 AsHalves(uint32_t x) { return *reinterpret_cast<const __half2*>(&x); }

// Pairs times those in shared memory of StoreHalves, 16 bytes at `first` and 16 at `second`.
__device__ inline void ScalePairs(const __half2 (&pairs)[8], uint32_t first, uint32_t second,
                                  __half2 (&out)[8]) {
  const uint4 x = LoadShared(first), y = LoadShared(second);
  const uint32_t scales[8] = {x.x, x.y, x.z, x.w, y.x, y.y, y.z, y.w};
#pragma unroll
  for (uint32_t i = 0; i < 8; ++i) out[i] = __hmul2(pairs[i], AsHalves(scales[i]));
}

// Adds weights times the bits of `mask` of each code, as they lie, for two channels.
template <uint32_t kMask>
__device__ inline void AddCodes(uint32_t first, uint32_t second, const __half2 (&pairs)[8],
                                float (&sums)[4]) {
  constexpr uint32_t kBoth = kMask | kMask << 16;
  const uint32_t first_odd = first >> 8, second_odd = second >> 8;
#pragma unroll
  for (uint32_t p = 0; p < 4; ++p) {
    MultiplyHalves(sums, first & kBoth << 2 * p, second & kBoth << 2 * p,
                   first_odd & kBoth << 2 * p, second_odd & kBoth << 2 * p, Bits(pairs[2 * p]),
                   Bits(pairs[2 * p + 1]));
  }
}

// Four channels of a tile's codes from two lines, as two pairs of rows of the products.
template <typename Shape, typename Add>
__device__ inline void EachPair(uint32_t stage, uint32_t lane, uint32_t r, const Add& add) {
  const uint4 x = LoadShared(stage + Shape::Lines(lane % 4, 8 * r + lane / 4));
  add(2 * r, x.x, x.y);
  add(2 * r + 1, x.z, x.w);
}

template <typename Shape>
__device__ inline void AddRotated(uint32_t stage, uint32_t lane, const __half2 (&pairs)[8],
                                  Running* running) {
  const uint32_t scales = stage + Shape::kScales + lane % 4 * Shape::kScaleBytes;
  __half2 lower[8], upper[8];
  ScalePairs(pairs, scales, scales + 16, lower);
  ScalePairs(pairs, scales + 32, scales + 48, upper);
#pragma unroll
  for (uint32_t p = 0; p < 4; ++p) {  // times 4^p, in all rows but the lower half
    const uint32_t place = Bits(__float2half2_rn(static_cast<float>(1u << 2 * p)));
    MultiplyHalves(running->totals, place, 0, place, 0, Bits(lower[2 * p]), Bits(lower[2 * p + 1]));
  }
#pragma unroll
  for (uint32_t r = 0; r < 4; ++r) {
    EachPair<Shape>(stage, lane, r, [&](uint32_t m, uint32_t first, uint32_t second) {
      AddCodes<1>(first, second, lower, running->levels[m]);
      AddCodes<2>(first, second, upper, running->levels[m]);
    });
  }
}

template <typename Shape>
__device__ inline void AddRanges(uint32_t stage, uint32_t lane, const __half2 (&pairs)[8],
                                 Running* running) {
  const uint32_t g = lane / 4, c = lane % 4;
#pragma unroll
  for (uint32_t half = 0; half < 2; ++half) {  // row g: group g % 4
    const uint4 z = LoadShared(stage + Shape::Ranges(c, g % 4 * 4 + 2 + half));
    const __half2* const of_half = pairs + 4 * half;
    MultiplyHalves(running->totals, z.x, 0, z.y, 0, Bits(of_half[0]), Bits(of_half[1]));
    MultiplyHalves(running->totals, z.z, 0, z.w, 0, Bits(of_half[2]), Bits(of_half[3]));
  }
#pragma unroll
  for (uint32_t r = 0; r < 4; ++r) {  // 32 channels, which share scales
    __half2 placed[8];
    ScalePairs(pairs, stage + Shape::Ranges(c, 4 * r), stage + Shape::Ranges(c, 4 * r + 1), placed);
    EachPair<Shape>(stage, lane, r, [&](uint32_t m, uint32_t first, uint32_t second) {
      AddCodes<3>(first, second, placed, running->levels[m]);
    });
  }
}

template <typename Shape, KeyKind kKeys, ValueKind kValues>
__device__ inline void AttendStep(const QueryOperands<kKeys>& query, const AttendArgs& args,
                                  const Segment& segment, uint32_t step, uint32_t stage,
                                  uint32_t lane, Running* running) {
  const uint32_t c = lane % 4;
  float weights[16], scales[16];
  ScoreStep<Shape, kKeys>(query, stage, lane, weights);
  LoadScales(stage + Shape::kScales + c * Shape::kScaleBytes, scales);
#pragma unroll
  for (uint32_t i = 0; i < 16; ++i) weights[i] *= scales[i];
  if (args.logit_softcap != 0.0f) {
    const float cap = args.logit_softcap * kLog2E;
    const float inverse = 1.0f / cap;
#pragma unroll
    for (float& logit : weights) logit = cap * Tanh(logit * inverse);
  }
  const uint32_t first = step * 64;
  if (first < segment.token_begin || first + 64 > segment.token_end) {
#pragma unroll
    for (uint32_t i = 0; i < 16; ++i) {
      const uint32_t token = first + 16 * c + i;
      if (token < segment.token_begin || token >= segment.token_end) weights[i] = -INFINITY;
    }
  }
  const StoredScales<Shape> stored = LoadStored<Shape>(stage, lane);
  RaiseExponent(LargestScale(stored), lane, running);
  __syncwarp();
  StoreHalves(stored, PowerOfTwoDown(running->exponent), stage, lane);
  Softmax(lane, weights, running);
  __half2 pairs[8];
  PackWeights(weights, pairs);
  __syncwarp();
  if constexpr (kValues == ValueKind::kRotated) {
    AddRotated<Shape>(stage, lane, pairs, running);
  } else {
    AddRanges<Shape>(stage, lane, pairs, running);
  }
}

// A warp's sums to memory, in the units of values.
template <ValueKind kValues>
__device__ void StoreRunning(Running running, uint32_t num_queries, uint32_t lane,
                             Partial* partial) {
  const uint32_t g = lane / 4, c = lane % 4;
  const auto over_lanes = [](float x) {
    x += __shfl_xor_sync(0xFFFFFFFF, x, 1);
    return x + __shfl_xor_sync(0xFFFFFFFF, x, 2);
  };
  running.sum = over_lanes(running.sum);
  if (c == 0) {
    partial->max[g] = running.max;
    partial->sum[g] = running.sum * (1 / kWeightFactor);
  }
  const float unit = (kValues == ValueKind::kRotated ? kTwoBitUnit : 1.0f) *
                     scalbnf(1.0f, static_cast<int>(running.exponent) - 127);
  // Of queries 2c and 2c + 1.
  float totals[4][2];
  constexpr float kTotalFactor = kValues == ValueKind::kRotated
                                     ? -kTwoBitHigh / (kWeightFactor * kRotatedFactor * kLowerBit)
                                     : 1 / (kWeightFactor * kZeroFactor);
#pragma unroll
  for (uint32_t r = 0; r < 4; ++r) {
    totals[r][0] = __shfl_sync(0xFFFFFFFF, running.totals[0], 4 * r + c) * kTotalFactor;
    totals[r][1] = __shfl_sync(0xFFFFFFFF, running.totals[1], 4 * r + c) * kTotalFactor;
  }
  if (2 * c >= num_queries) return;
#pragma unroll
  for (uint32_t m = 0; m < kDim / 16; ++m) {
    const uint32_t group = kValues == ValueKind::kRotated ? 0 : m / 2;
#pragma unroll
    for (uint32_t i = 0; i < 4; ++i) {
      const float x = fmaf(running.levels[m][i], kOutFactor<kValues>, totals[group][i % 2]) * unit;
      partial->out[2 * c + i % 2][ChannelOf(g, m / 2, m % 2) + i / 2] = x;
    }
  }
}

template <KeyKind kKeys, ValueKind kValues, uint32_t kBlockWarps>
__global__ void __launch_bounds__(32 * kBlockWarps, kWideWarps / kBlockWarps)
    Attend(const __grid_constant__ CellPlan plan, const __grid_constant__ AttendArgs args) {
  using Shape = StepShape<kKeys, kValues, true>;
  using Ring = StepRing<Shape, kStages>;
  static_assert(Ring::kBytes >= sizeof(Partial));
  extern __shared__ __align__(128) uint8_t shared[];
  __shared__ QueryRoom<kKeys> room;
  const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  Segments segments(args.chain);
  for (Segment segment; segments.Next(&segment);) {
    // The warp's steps are number warp, warp + kBlockWarps, ... of the segment.
    Ring ring(plan, segment, SharedAddress(shared), warp, kBlockWarps, lane);
    ring.Begin();
    // Wide blocks begin all at once, while the launch before merges; what it stores would wait
    // behind all that they ask for.
    constexpr bool kFillLater = kBlockWarps == kWideWarps;
    if constexpr (!kFillLater) ring.Fill();
    WaitForLaunchBefore();
    AllowNextLaunch();
    QueryOperands<kKeys> query;
    const QueryRows rows = LoadQueries<kBlockWarps>(
        args.queries + size_t{segment.pair} * args.num_queries * kDim, args.num_queries);
    ProjectQueries(plan, rows, args.num_queries, &room);
    if constexpr (kFillLater) ring.Fill();
    MakeOperands<kKeys, kBlockWarps>(&room, &query);
    query.step *= args.softmax_scale * kLog2E;
    query.base *= args.softmax_scale * kLog2E;
    Running running;
    for (uint32_t step = segment.begin + warp; step < segment.end; step += kBlockWarps) {
      AttendStep<Shape, kKeys, kValues>(query, args, segment, step, ring.Next(), lane, &running);
    }
    WaitForCopies<0>();
    __syncwarp();
    // Each warp where its ring was.
    StoreRunning<kValues>(running, args.num_queries, lane,
                          reinterpret_cast<Partial*>(shared + warp * Ring::kBytes));
    __syncthreads();
    StoreSegment<kValues, kBlockWarps>(plan, args, segment, shared, Ring::kBytes);
    __syncthreads();
  }
}

}  // namespace

cudaError_t AttendBlocks(ThreadBlocks* blocks) {
  int device = 0, processors = 0, shared_bytes = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) {
    error = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  }
  if (error == cudaSuccess) {
    error = cudaDeviceGetAttribute(&shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  }
  if (error != cudaSuccess) return error;
  blocks->narrow = kNarrowBlocks * static_cast<uint32_t>(processors);
  blocks->wide =
      static_cast<uint32_t>(shared_bytes) < kWideBytes ? 0 : static_cast<uint32_t>(processors);
  return cudaSuccess;
}

cudaError_t LaunchAttend(const CellPlan& plan, const AttendArgs& args, cudaStream_t stream) {
  if (args.chain.num_thread_blocks == 0) return cudaSuccess;
  return WithKeyKind(plan, [&](auto keys) {
    return WithValueKind(plan, [&](auto values) {
      constexpr KeyKind kKeys = decltype(keys)::value;
      constexpr ValueKind kValues = decltype(values)::value;
      constexpr uint32_t kBytes = StepRing<StepShape<kKeys, kValues, true>, kStages>::kBytes;
      static_assert(kWideWarps * kBytes + sizeof(QueryRoom<kKeys>) <= kWideBytes);
      const auto launch = args.begins_early ? LaunchEarly<CellPlan, AttendArgs>
                                            : LaunchKernel<CellPlan, AttendArgs>;
      const auto kernel =
          args.chain.wide ? Attend<kKeys, kValues, kWideWarps> : Attend<kKeys, kValues, kWarps>;
      const uint32_t warps = args.chain.wide ? kWideWarps : kWarps;
      return launch(kernel, args.chain.num_thread_blocks, 32 * warps, warps * kBytes, stream, plan,
                    args);
    });
  });
}

}  // namespace sketchkv::cuda
