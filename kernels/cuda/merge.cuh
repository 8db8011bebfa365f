#pragma once

#include "kernels/cuda/query.cuh"

// Partial attention of warps and thread blocks to that of a (sequence, kv head).
namespace sketchkv::cuda {

constexpr float kLn2 = 0.69314718055994531f;

// A query's share of a warp's or a thread block's result: outputs are sums, not divided by `sum`.
struct Partial {
  float max[kMaxQueries];
  float sum[kMaxQueries];
  float out[kMaxQueries][kDim];
};
static_assert(sizeof(Partial) == kPartialFloats * sizeof(float));

// What is merged of one query; lane l of a warp has channels 4l to 4l + 3.
struct Merged {
  float max;
  float sum;
  float out[4];
};

// Partials whose loads are all on their way at once.
constexpr uint32_t kPartialsAtOnce = 24;

// The partials of query q, `count` of them.
__device__ inline Merged Merge(const Partial* partials, uint32_t count, uint32_t q, uint32_t lane) {
  Merged merged = {-INFINITY, 0.0f, {}};
  for (uint32_t first = 0; first < count; first += kPartialsAtOnce) {
    const bool has_own = lane < kPartialsAtOnce && first + lane < count;
    const float own_max = has_own ? __ldcg(partials[first + lane].max + q) : -INFINITY;
    const float own_sum = has_own ? __ldcg(partials[first + lane].sum + q) : 0.0f;
    float4 rows[kPartialsAtOnce];
#pragma unroll
    for (uint32_t i = 0; i < kPartialsAtOnce; ++i) {
      rows[i] = first + i < count
                    ? __ldcg(reinterpret_cast<const float4*>(partials[first + i].out[q]) + lane)
                    : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    }
    const float largest = fmaxf(merged.max, LargestOfWarp(own_max));
    const float max = largest == -INFINITY ? 0.0f : largest;
    const float before = Exp2(merged.max - max), weight = Exp2(own_max - max);
    merged.max = largest;
    merged.sum = fmaf(weight, own_sum, before * merged.sum);
#pragma unroll
    for (float& x : merged.out) x *= before;
#pragma unroll
    for (uint32_t i = 0; i < kPartialsAtOnce; ++i) {
      const float w = __shfl_sync(0xFFFFFFFF, weight, i);
      merged.out[0] = fmaf(w, rows[i].x, merged.out[0]);
      merged.out[1] = fmaf(w, rows[i].y, merged.out[1]);
      merged.out[2] = fmaf(w, rows[i].z, merged.out[2]);
      merged.out[3] = fmaf(w, rows[i].w, merged.out[3]);
    }
  }
  merged.sum = SumOfWarp(merged.sum);
  return merged;
}

// Normalised output and log-sum-exp of a query. No tokens give zeros and -inf.
template <ValueKind kValues>
__device__ void Finish(const CellPlan& plan, const AttendArgs& args, size_t row, uint32_t lane,
                       Merged merged) {
  const float inverse = merged.sum > 0.0f ? 1.0f / merged.sum : 0.0f;
#pragma unroll
  for (float& x : merged.out) x *= inverse;
  if (kValues == ValueKind::kRotated) {
    WalshOfWarp(merged.out, lane);
#pragma unroll
    for (uint32_t i = 0; i < 4; ++i) {
      if (SignAt(plan.value_signs, 4 * lane + i)) merged.out[i] = -merged.out[i];
    }
  }
  reinterpret_cast<float4*>(args.out + row * kDim)[lane] = {merged.out[0], merged.out[1],
                                                            merged.out[2], merged.out[3]};
  if (lane == 0) {
    args.lse[row] = merged.sum > 0.0f ? (merged.max + log2f(merged.sum)) * kLn2 : -INFINITY;
  }
}

// This thread block's partial to memory for all to see; true in the block that arrives last.
__device__ inline bool ArriveLast(uint32_t* arrivals, uint32_t expected) {
  __shared__ bool last;
  __syncthreads();
  if (threadIdx.x == 0) {
    last = AddInOrder(arrivals, 1) + 1 == expected;
    if (last) *arrivals = 0;
  }
  __syncthreads();
  return last;
}

// From the partials of the block's warps in shared memory, `stride` bytes apart, to the pair's
// result, or to this block's share of it.
template <ValueKind kValues, uint32_t kBlockWarps>
__device__ void StoreSegment(const CellPlan& plan, const AttendArgs& args, const Segment& segment,
                             const uint8_t* of_warps, uint32_t stride) {
  const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  auto* const stored = reinterpret_cast<Partial*>(args.partials);
  const size_t row = size_t{segment.pair} * args.num_queries;
  const auto of_warp = [&](uint32_t w) -> const Partial& {
    return *reinterpret_cast<const Partial*>(of_warps + w * stride);
  };
  for (uint32_t q = warp; q < args.num_queries; q += kBlockWarps) {
    Merged merged = {-INFINITY, 0.0f, {}};
#pragma unroll
    for (uint32_t w = 0; w < kBlockWarps; ++w) merged.max = fmaxf(merged.max, of_warp(w).max[q]);
    const float max = merged.max == -INFINITY ? 0.0f : merged.max;
#pragma unroll
    for (uint32_t w = 0; w < kBlockWarps; ++w) {
      const float weight = Exp2(of_warp(w).max[q] - max);
      const float4 x = reinterpret_cast<const float4*>(of_warp(w).out[q])[lane];
      merged.sum += weight * of_warp(w).sum[q];
      merged.out[0] = fmaf(weight, x.x, merged.out[0]);
      merged.out[1] = fmaf(weight, x.y, merged.out[1]);
      merged.out[2] = fmaf(weight, x.z, merged.out[2]);
      merged.out[3] = fmaf(weight, x.w, merged.out[3]);
    }
    if (segment.num_partials == 1) {
      Finish<kValues>(plan, args, row + q, lane, merged);
      continue;
    }
    Partial& own = stored[segment.partial];
    reinterpret_cast<float4*>(own.out[q])[lane] = {merged.out[0], merged.out[1], merged.out[2],
                                                   merged.out[3]};
    if (lane == 0) {
      own.max[q] = merged.max;
      own.sum[q] = merged.sum;
    }
  }
  if (segment.num_partials == 1 ||
      !ArriveLast(args.arrivals + segment.pair, segment.num_partials)) {
    return;
  }
  for (uint32_t q = warp; q < args.num_queries; q += kBlockWarps) {
    Finish<kValues>(plan, args, row + q, lane,
                    Merge(stored + segment.first_partial, segment.num_partials, q, lane));
  }
}

}  // namespace sketchkv::cuda
