#include "tests/gpu/general_on_host.h"

#include <cmath>
#include <cstring>

// The CPU has kernels that the general path does not use.
#pragma GCC diagnostic ignored "-Wunused-function"

namespace sketchkv::cuda {
namespace {

// clang-format off
#include "kernels/cpu/lanes_scalar.inc"
#include "kernels/cpu/bytes_scalar.inc"
#include "kernels/cpu/across_lanes.inc"
#include "kernels/cpu/lane_math.inc"
#include "kernels/cpu/number_types.inc"
#include "kernels/cpu/channels.inc"
// clang-format on

// What kernels/cuda/general/lanes.cuh has besides.
float FloatOf(uint32_t bits) {
  float x = 0.0f;
  std::memcpy(&x, &bits, sizeof(x));
  return x;
}
U LessU(const U& a, const U& b) {
  U r;
  SKETCHKV_EACH_LANE r.v[i] = a.v[i] < b.v[i] ? 0xFFFFFFFFu : 0u;
  return r;
}
U MulAddU(const U& a, uint32_t by, uint32_t add) {
  U r;
  SKETCHKV_EACH_LANE r.v[i] = a.v[i] * by + add;
  return r;
}
U SelectU(const U& mask, const U& a, const U& b) {
  U r;
  SKETCHKV_EACH_LANE r.v[i] = mask.v[i] != 0 ? a.v[i] : b.v[i];
  return r;
}
U LaneIndex() {
  U r;
  SKETCHKV_EACH_LANE r.v[i] = i;
  return r;
}
uint32_t LargestLane(const U& x) { return LargestOf(x.v); }
float FirstLane(const F& x) { return x.v[0]; }
uint32_t FirstLane(const U& x) { return x.v[0]; }
float LogOf(float x) { return std::log(x); }
void MaxInto(uint32_t* kept, uint32_t x) { *kept = x > *kept ? x : *kept; }
void StoreLanes(float* out, uint32_t begin, uint32_t end, const F& x) {
  for (uint32_t i = begin; i < end; ++i) out[i - begin] = x.v[i];
}
void LoadSixteenRows(const RowsArgs& rows, uint32_t num_tokens, uint32_t channel, uint32_t count,
                     F (&x)[16]) {
  for (uint32_t t = 0; t < kLanes; ++t) {
    x[t] = t < num_tokens ? LoadChannels(rows, t, channel, count) : Zero();
  }
}
void Prefetch(const uint8_t* /*data*/, size_t /*bytes*/) {}
void CopyRows(const uint8_t* from, size_t from_stride, uint8_t* to, size_t to_stride,
              uint32_t count, uint32_t dim, uint32_t number_bytes) {
  for (uint32_t t = 0; t < count; ++t) {
    std::memcpy(to + t * to_stride, from + t * from_stride, size_t{dim} * number_bytes);
  }
}

#include "kernels/cuda/general/kernels.inc"

uint32_t Pairs(const GeneralQueryArgs& args) {
  return args.chain.num_sequences * args.chain.num_kv_heads;
}
uint32_t Groups(const GeneralQueryArgs& args, uint32_t size) {
  return (args.num_queries + size - 1) / size;
}

template <typename Item>
void EachItem(uint32_t count, const Item& item) {
  for (uint32_t i = 0; i < count; ++i) item(i);
}

void Prepare(const GeneralPlan& plan, const GeneralQueryArgs& args) {
  EachItem(Pairs(args) * Groups(args, kLanes), [&](uint32_t i) { PrepareQueries(plan, args, i); });
}

}  // namespace
}  // namespace sketchkv::cuda

namespace sketchkv::testing {

void EncodeOnHost(const cuda::GeneralPlan& plan, const cuda::GeneralEncodeArgs& args) {
  const uint32_t tiles = 2 * args.num_cells * plan.num_tiles;
  for (uint32_t i = 0; i < args.num_cells; ++i) {
    std::memset(args.cells[i].rows.cell, 0, plan.cell_bytes);
  }
  cuda::EachItem(tiles, [&](uint32_t i) { cuda::CheckTile(plan, args, i); });
  cuda::EachItem(args.num_cells, [&](uint32_t i) { cuda::PrepareCell(plan, args, i); });
  cuda::EachItem(tiles, [&](uint32_t i) { cuda::EncodeTile(plan, args, i); });
}

void DecodeOnHost(const cuda::GeneralPlan& plan, const cuda::GeneralDecodeArgs& args) {
  cuda::EachItem(2 * args.num_cells * plan.num_tiles,
                 [&](uint32_t i) { cuda::DecodeTile(plan, args, i); });
}

void ScoreOnHost(const cuda::GeneralPlan& plan, const cuda::GeneralScoreArgs& args) {
  const cuda::GeneralQueryArgs& query = args.query;
  cuda::Prepare(plan, query);
  cuda::EachItem(query.chain.num_thread_blocks * cuda::Groups(query, cuda::kQueriesTogether),
                 [&](uint32_t i) { cuda::ScoreItem(plan, args, i); });
}

void AttendOnHost(const cuda::GeneralPlan& plan, const cuda::GeneralAttendArgs& args) {
  const cuda::GeneralQueryArgs& query = args.query;
  cuda::Prepare(plan, query);
  cuda::EachItem(query.chain.num_thread_blocks * cuda::Groups(query, cuda::kQueriesTogether),
                 [&](uint32_t i) { cuda::AttendItem(plan, args, i); });
  const uint32_t sixteens = (plan.value_rows + kLanes - 1) / kLanes;
  cuda::EachItem(cuda::Pairs(query) * query.num_queries * sixteens,
                 [&](uint32_t i) { cuda::MergeItem(plan, args, i); });
  if (plan.values != cuda::GeneralValues::kRotated) return;
  cuda::EachItem(cuda::Pairs(query) * cuda::Groups(query, kLanes),
                 [&](uint32_t i) { cuda::TurnItem(plan, args, i); });
}

}  // namespace sketchkv::testing
