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

// partial(i) for i < count: one of the query's. The loads of several are under way at once.
template <typename GetPartial>
__device__ Merged Merge(uint32_t count, uint32_t q, uint32_t lane, const GetPartial& partial) {
  Merged merged = {-INFINITY, 0.0f, {}};
  for (uint32_t i = lane; i < count; i += 32) {
    merged.max = fmaxf(merged.max, __ldcg(partial(i).max + q));
  }
  merged.max = LargestOfWarp(merged.max);
  const float max = merged.max == -INFINITY ? 0.0f : merged.max;
  for (uint32_t first = 0; first < count; first += 32) {
    float weight = 0.0f;
    if (first + lane < count) {
      const Partial& own = partial(first + lane);
      weight = Exp2(__ldcg(own.max + q) - max);
      merged.sum += weight * __ldcg(own.sum + q);
    }
    const uint32_t some = min(32u, count - first);
#pragma unroll 16
    for (uint32_t i = 0; i < some; ++i) {
      const float w = __shfl_sync(0xFFFFFFFF, weight, i);
      const float4 x = __ldcg(reinterpret_cast<const float4*>(partial(first + i).out[q]) + lane);
      merged.out[0] = fmaf(w, x.x, merged.out[0]);
      merged.out[1] = fmaf(w, x.y, merged.out[1]);
      merged.out[2] = fmaf(w, x.z, merged.out[2]);
      merged.out[3] = fmaf(w, x.w, merged.out[3]);
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

// From the warps' partials in shared memory to the pair's result, or to this block's share of it.
template <ValueKind kValues>
__device__ void StoreSegment(const CellPlan& plan, const AttendArgs& args, const Segment& segment,
                             const Partial* of_warps) {
  const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  auto* const stored = reinterpret_cast<Partial*>(args.partials);
  const size_t row = size_t{segment.pair} * args.num_queries;
  for (uint32_t q = warp; q < args.num_queries; q += kWarps) {
    Merged merged = {-INFINITY, 0.0f, {}};
#pragma unroll
    for (uint32_t w = 0; w < kWarps; ++w) merged.max = fmaxf(merged.max, of_warps[w].max[q]);
    const float max = merged.max == -INFINITY ? 0.0f : merged.max;
#pragma unroll
    for (uint32_t w = 0; w < kWarps; ++w) {
      const float weight = Exp2(of_warps[w].max[q] - max);
      const float4 x = reinterpret_cast<const float4*>(of_warps[w].out[q])[lane];
      merged.sum += weight * of_warps[w].sum[q];
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
  for (uint32_t q = warp; q < args.num_queries; q += kWarps) {
    const auto partial = [&](uint32_t i) -> const Partial& {
      return stored[segment.first_partial + i];
    };
    Finish<kValues>(plan, args, row + q, lane, Merge(segment.num_partials, q, lane, partial));
  }
}

}  // namespace sketchkv::cuda
