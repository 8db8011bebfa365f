#include <cuda_fp16.h>

#include "kernels/cuda/key_scores.cuh"
#include "kernels/cuda/launching.cuh"
#include "kernels/cuda/merge.cuh"

// Attention over compressed cells, one launch: the warps of a thread block take the steps of a
// segment in turn, each with a running maximum. The thread block that is the last of a (sequence,
// kv head) to arrive merges all partials.
namespace sketchkv::cuda {
namespace {

constexpr uint32_t kStages = 3;  // steps of a warp in shared memory: one at work, two on the way
constexpr float kLog2E = 1.44269504088896f;

// Two bits of a half that is read as a subnormal number count in steps of 2^-24. Weights of tokens
// times their scales, below 2 once divided by a power of two, are multiplied by 2^8, so that they
// keep eleven bits down to 2^-22 of the largest.
constexpr float kWeightFactor = 256.0f;
constexpr float kOutFactor = 65536.0f;  // 2^24 / 2^8

// What a warp knows of its tokens so far. Of lane l: query g = l / 4 of max, sum and totals; sums
// of levels of queries 2c and 2c + 1, c = l % 4.
struct Running {
  float max = -INFINITY;  // of logits times log2(e), of all lanes of the query
  float sum = 0.0f;       // of this lane's tokens
  uint32_t exponent = 0;  // biased: values' scales are over 2^(exponent - 127)
  // Of this lane's tokens, times kWeightFactor: sums of weights (rotated values), or of weights
  // times zeros, a group.
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
#pragma unroll
  for (float& total : running->totals) total *= factor;
  const uint32_t c = lane % 4;
  const float even = __shfl_sync(0xFFFFFFFF, factor, 8 * c);
  const float odd = __shfl_sync(0xFFFFFFFF, factor, 8 * c + 4);
#pragma unroll
  for (auto& level : running->levels) {
    level[0] *= even;
    level[1] *= odd;
    level[2] *= even;
    level[3] *= odd;
  }
}

// From logits times log2(e) to weights exp2(logit - max), in place.
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
  const float max = running->max == -INFINITY ? 0.0f : running->max;
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

// pairs times factor / 4^p, which takes back where the codes of tokens 4p and on lie.
__device__ inline void ScalePairs(const __half2 (&pairs)[8], float factor, __half2 (&out)[8]) {
#pragma unroll
  for (uint32_t i = 0; i < 8; ++i) {
    out[i] = __hmul2(pairs[i], __float2half2_rn(factor / static_cast<float>(1u << i / 2 * 2)));
  }
}

__device__ inline float PowerOfTwoDown(uint32_t exponent) {  // 2^(127 - exponent)
  return exponent < 254 ? __uint_as_float((254 - exponent) << 23) : 0x1p-127f;
}

template <typename Shape>
__device__ inline uint32_t LargestScale(uint32_t stage, uint32_t lane) {
  // Lane l looks at two tokens of tile l / 8, in each row of scales.
  uint32_t largest = 0;
  const auto look = [&](uint32_t address) {
    uint32_t pair;
    asm volatile("ld.shared.u32 %0, [%1];\n" : "=r"(pair) : "r"(address));
    largest = max(largest, max(pair & 0xFFFF, pair >> 16));
  };
  const uint32_t tile = lane / 8, j = lane % 8;
  if constexpr (Shape::kHasRanges) {
#pragma unroll
    for (uint32_t group = 0; group < 4; ++group) {
      look(stage + Shape::Ranges(tile, 4 * group + j / 4) + j % 4 * 4);
    }
  } else {
    look(stage + Shape::kScales + tile * Shape::kScaleBytes + 32 + 4 * j);
  }
  return __reduce_max_sync(0xFFFFFFFF, largest);
}

// Four channels of a tile's codes from two lines, as two pairs of rows of the products.
template <typename Shape, typename Add>
__device__ inline void EachPair(uint32_t stage, uint32_t lane, uint32_t r, const Add& add) {
  const uint4 x = LoadShared(stage + Shape::Lines(lane % 4, 8 * r + lane / 4));
  add(2 * r, x.x, x.y);
  add(2 * r + 1, x.z, x.w);
}

template <typename Shape>
__device__ inline void AddRotated(uint32_t stage, uint32_t lane, float (&weights)[16],
                                  Running* running) {
  float scales[16];
  LoadScales(stage + Shape::kScales + lane % 4 * Shape::kScaleBytes + 32, scales);
  const float factor = PowerOfTwoDown(running->exponent) * kWeightFactor;
#pragma unroll
  for (uint32_t i = 0; i < 16; ++i) {
    weights[i] *= scales[i] * factor;
    running->totals[0] += weights[i];
  }
  __half2 pairs[8], lower[8], upper[8];
  PackWeights(weights, pairs);
  ScalePairs(pairs, kTwoBitHigh - kTwoBitLow, lower);
  ScalePairs(pairs, (kTwoBitHigh + kTwoBitLow) / 2, upper);
#pragma unroll
  for (uint32_t r = 0; r < 4; ++r) {
    EachPair<Shape>(stage, lane, r, [&](uint32_t m, uint32_t first, uint32_t second) {
      AddCodes<1>(first, second, lower, running->levels[m]);
      AddCodes<2>(first, second, upper, running->levels[m]);
    });
  }
}

template <typename Shape>
__device__ inline void AddRanges(uint32_t stage, uint32_t lane, float (&weights)[16],
                                 Running* running) {
  const uint32_t c = lane % 4;
  const float factor = PowerOfTwoDown(running->exponent) * kWeightFactor;
#pragma unroll
  for (float& weight : weights) weight *= factor;
#pragma unroll
  for (uint32_t r = 0; r < 4; ++r) {  // 32 channels, which share scales and zeros
    float scaled[16];
#pragma unroll
    for (uint32_t half = 0; half < 2; ++half) {
      const uint4 s = LoadShared(stage + Shape::Ranges(c, 4 * r + half));
      const uint4 z = LoadShared(stage + Shape::Ranges(c, 4 * r + 2 + half));
      const uint32_t scales[4] = {s.x, s.y, s.z, s.w};
      // A zero more 2^15 as the last bits of 2^23: a float less 2^23 + 2^15.
      const uint32_t zeros[4] = {z.x ^ 0x80008000u, z.y ^ 0x80008000u, z.z ^ 0x80008000u,
                                 z.w ^ 0x80008000u};
#pragma unroll
      for (uint32_t i = 0; i < 4; ++i) {
        const uint32_t t = 8 * half + 2 * i;
        scaled[t] = weights[t] * __uint_as_float(scales[i] << 15 & 0x7FFF8000u);
        scaled[t + 1] = weights[t + 1] * __uint_as_float(scales[i] >> 1 & 0x7FFF8000u);
        const float even = __uint_as_float(__byte_perm(zeros[i], 0x4B000000u, 0x7610));
        const float odd = __uint_as_float(__byte_perm(zeros[i], 0x4B000000u, 0x7632));
        running->totals[r] = fmaf(scaled[t], even - 8421376.0f, running->totals[r]);
        running->totals[r] = fmaf(scaled[t + 1], odd - 8421376.0f, running->totals[r]);
      }
    }
    __half2 pairs[8], placed[8];
    PackWeights(scaled, pairs);
    ScalePairs(pairs, 1.0f, placed);
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
#pragma unroll
    for (float& logit : weights) logit = cap * tanhf(logit / cap);
  }
  const uint32_t first = step * 64;
  if (first < segment.token_begin || first + 64 > segment.token_end) {
#pragma unroll
    for (uint32_t i = 0; i < 16; ++i) {
      const uint32_t token = first + 16 * c + i;
      if (token < segment.token_begin || token >= segment.token_end) weights[i] = -INFINITY;
    }
  }
  Softmax(lane, weights, running);
  RaiseExponent(LargestScale<Shape>(stage, lane), lane, running);
  if constexpr (kValues == ValueKind::kRotated) {
    AddRotated<Shape>(stage, lane, weights, running);
  } else {
    AddRanges<Shape>(stage, lane, weights, running);
  }
}

// A warp's sums to memory, in the units of values.
template <ValueKind kValues>
__device__ void StoreRunning(Running running, uint32_t lane, Partial* partial) {
  const uint32_t g = lane / 4, c = lane % 4;
  const auto over_lanes = [](float x) {
    x += __shfl_xor_sync(0xFFFFFFFF, x, 1);
    return x + __shfl_xor_sync(0xFFFFFFFF, x, 2);
  };
  running.sum = over_lanes(running.sum);
  if (c == 0) {
    partial->max[g] = running.max;
    partial->sum[g] = running.sum;
  }
  const float unit = (kValues == ValueKind::kRotated ? kTwoBitUnit : 1.0f) *
                     scalbnf(1.0f, static_cast<int>(running.exponent) - 127);
  // Of queries 2c and 2c + 1.
  float totals[4][2];
#pragma unroll
  for (uint32_t r = 0; r < 4; ++r) {
    float total =
        kValues == ValueKind::kRotated
            ? (r == 0 ? over_lanes(running.totals[0]) * (-kTwoBitHigh / kWeightFactor) : 0.0f)
            : over_lanes(running.totals[r]) * (0.0625f / kWeightFactor);
    totals[r][0] = __shfl_sync(0xFFFFFFFF, total, 8 * c);
    totals[r][1] = __shfl_sync(0xFFFFFFFF, total, 8 * c + 4);
  }
#pragma unroll
  for (uint32_t m = 0; m < kDim / 16; ++m) {
    const uint32_t group = kValues == ValueKind::kRotated ? 0 : m / 2;
#pragma unroll
    for (uint32_t i = 0; i < 4; ++i) {
      const float x = fmaf(running.levels[m][i], kOutFactor, totals[group][i % 2]) * unit;
      partial->out[2 * c + i % 2][ChannelOf(g, m / 2, m % 2) + i / 2] = x;
    }
  }
}

template <KeyKind kKeys, ValueKind kValues>
__global__ void __launch_bounds__(kThreads, 3)
    Attend(const __grid_constant__ CellPlan plan, const __grid_constant__ AttendArgs args) {
  using Shape = StepShape<kKeys, kValues, true>;
  extern __shared__ __align__(128) uint8_t shared[];
  __shared__ QueryRoom<kKeys> room;
  const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  Segments segments(args.chain);
  for (Segment segment; segments.Next(&segment);) {
    // The warp's steps are number warp, warp + 4, ... of the segment.
    StepRing<Shape, kStages> ring(plan, segment, SharedAddress(shared), warp, kWarps, lane);
    QueryOperands<kKeys> query;
    const QueryRows rows = LoadQueries(
        args.queries + size_t{segment.pair} * args.num_queries * kDim, args.num_queries);
    ring.Begin();
    ProjectQueries(plan, rows, args.num_queries, &room);
    MakeOperands(&room, &query);
    query.step *= args.softmax_scale * kLog2E;
    query.base *= args.softmax_scale * kLog2E;
    Running running;
    for (uint32_t step = segment.begin + warp; step < segment.end; step += kWarps) {
      AttendStep<Shape, kKeys, kValues>(query, args, segment, step, ring.Next(), lane, &running);
    }
    WaitForCopies<0>();
    __syncthreads();
    auto* const of_warps = reinterpret_cast<Partial*>(shared);
    StoreRunning<kValues>(running, lane, of_warps + warp);
    __syncthreads();
    StoreSegment<kValues>(plan, args, segment, of_warps);
    __syncthreads();
  }
}

}  // namespace

cudaError_t LaunchAttend(const CellPlan& plan, const AttendArgs& args, cudaStream_t stream) {
  if (args.chain.num_thread_blocks == 0) return cudaSuccess;
  return WithKeyKind(plan, [&](auto keys) {
    return WithValueKind(plan, [&](auto values) {
      constexpr KeyKind kKeys = decltype(keys)::value;
      constexpr ValueKind kValues = decltype(values)::value;
      constexpr uint32_t kBytes =
          kWarps * StepRing<StepShape<kKeys, kValues, true>, kStages>::kBytes;
      static_assert(kBytes >= kWarps * sizeof(Partial));
      return LaunchKernel(Attend<kKeys, kValues>, args.chain.num_thread_blocks, kThreads, kBytes,
                          stream, plan, args);
    });
  });
}

}  // namespace sketchkv::cuda
