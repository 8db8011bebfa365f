#include "kernels/cuda/plan.h"

#include <gmock/gmock.h>

#include "kernels/cuda/general/general.h"
#include "service/gpu/lane.h"
#include "tests/kernels/codec_testing.h"

// What needs no card: which cells the tuned kernels take, and how launches are cut.
namespace sketchkv::testing {
namespace {

using cuda::kDim;
using cuda::MakeCellPlan;

bool Takes(const KvLayout& layout, const ProfileRequest& request) {
  return MakeCellPlan(layout, Resolve(request, layout)).has_value();
}

TEST(GpuPlanTest, TakesTheTunedShapesAndNoOther) {
  const KvLayout layout = Layout(kDim, kDim, 64);
  for (const char* name : {"qjl", "qjl2p", "qjl3p"})
    EXPECT_TRUE(Takes(layout, Named(name))) << name;
  for (const char* name : {"raw", "qjl-paper", "qjl4p", "klt"}) {
    EXPECT_FALSE(Takes(layout, Named(name))) << name;
  }
  EXPECT_TRUE(Takes(Layout(kDim, kDim, 16), Named("qjl")));
  EXPECT_FALSE(Takes(Layout(kDim, kDim, 24), Named("qjl")));
  EXPECT_FALSE(Takes(Layout(kDim, kDim, 48), Named("qjl")));
  EXPECT_FALSE(Takes(Layout(64, kDim, 64), Named("qjl")));
  EXPECT_FALSE(Takes(Layout(kDim, 64, 64), Named("qjl")));
  ProfileRequest request = Named("qjl");
  request.sign_bits = 384;
  EXPECT_FALSE(Takes(layout, request));
  request = Named("qjl3p");
  request.num_outliers = 4;
  EXPECT_FALSE(Takes(layout, request));
  request = Named("qjl3p");
  request.centering = Centering::kBlock;
  EXPECT_FALSE(Takes(layout, request));
  request = Named("qjl3p");
  request.value_bits = 4;
  EXPECT_FALSE(Takes(layout, request));
  request = Named("qjl");
  request.projection = Projection::kOrthogonal;
  EXPECT_FALSE(Takes(layout, request));
}

TEST(GpuPlanTest, TheSearchTellsApartAllMagnitudesAtWhichLevelsRise) {
  const auto check = [](const cuda::CodePlan& plan, uint32_t num_steps) {
    for (uint32_t trial = 0; trial < cuda::kTrials; ++trial) {
      for (uint32_t step = 0; step < num_steps; ++step) {
        EXPECT_GT(plan.steps[trial][step].at, 0);
        EXPECT_LT(plan.steps[trial][step].at, cuda::kBins);
      }
    }
  };
  const KvLayout layout = Layout(kDim, kDim, 64);
  const auto three = cuda::MakeCodecPlan(layout, Resolve(Named("qjl3p"), layout));
  check(three->keys, 3);
  check(three->spread, 3);
  check(three->values, 1);
}

TEST(GpuPlanTest, AScheduleHasEveryStepAndNoMoreThreadBlocksThanFit) {
  const std::vector<cuda::TokenRange> ranges = {{0, 0, 1},     {1, 0, 64},     {2, 63, 65},
                                                {4, 100, 100}, {4, 0, 100000}, {2000, 1000, 5000}};
  const std::vector<uint32_t> steps = {1, 1, 2, 1, 1563, 64};
  constexpr uint32_t kHeads = 8;
  for (const uint32_t most : {1u, 7u, 396u, 100000u}) {
    cuda::ChainArgs schedule{};
    cuda::Schedule(ranges, kHeads, most, &schedule);
    ASSERT_EQ(schedule.num_sequences, ranges.size());
    for (size_t i = 0; i < ranges.size(); ++i) {
      EXPECT_EQ(schedule.sequences[i].first_block, ranges[i].first_block);
      EXPECT_EQ(schedule.sequences[i + 1].first_step - schedule.sequences[i].first_step, steps[i]);
    }
    const uint32_t all = schedule.sequences[ranges.size()].first_step * kHeads;
    EXPECT_LE(schedule.num_thread_blocks, most);
    EXPECT_GE(schedule.num_thread_blocks * schedule.share, all);
    EXPECT_LT((schedule.num_thread_blocks - 1) * schedule.share, all);
  }
  cuda::ChainArgs none{};
  cuda::Schedule({}, kHeads, 396, &none);
  EXPECT_EQ(none.num_thread_blocks, 0);
}

TEST(GpuPlanTest, TheLargestShapeFitsTheScratchOfALane) {
  KvLayout layout = Layout(576, 576, 16);
  layout.num_kv_heads = 256;
  ProfileRequest request = Named("qjl");
  request.sign_bits = 8 * layout.head_dim;
  const cuda::GeneralLayer layer(layout, Resolve(request, layout), {});
  const cuda::GeneralPlan plan = layer.Plan(nullptr);
  cuda::ChainArgs chain{};
  chain.num_sequences = 1;
  chain.num_kv_heads = layout.num_kv_heads;
  EXPECT_LE(PreparedFloats(plan, chain, cuda::kMaxQueries), gpu::Lane::kPreparedFloats);
  EXPECT_LE(PartialFloats(plan, chain, cuda::kMaxQueries), gpu::Lane::kPartialFloats);
  EXPECT_LE(TurnedFloats(plan, chain, cuda::kMaxQueries), gpu::Lane::kTurnedFloats);
}

}  // namespace
}  // namespace sketchkv::testing
