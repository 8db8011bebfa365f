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

// Steps that each (sequence, kv head) has places for, of which it needs StepsOf.
uint32_t PlacesOf(const cuda::ChainArgs& schedule, uint32_t sequence) {
  return schedule.sequences[sequence + 1].first_step - schedule.sequences[sequence].first_step;
}

cuda::ChainArgs Scheduled(const std::vector<cuda::TokenRange>& ranges, uint32_t num_kv_heads,
                          const cuda::ThreadBlocks& most) {
  cuda::ChainArgs schedule{};
  const absl::Status status = cuda::Schedule(ranges, num_kv_heads, most, &schedule);
  EXPECT_TRUE(status.ok()) << status;
  return schedule;
}

TEST(GpuPlanTest, AScheduleHasEveryStepAndNoMoreThreadBlocksThanFit) {
  const std::vector<cuda::TokenRange> ranges = {{0, 0, 1},     {1, 0, 64},     {2, 63, 65},
                                                {4, 100, 100}, {4, 0, 100000}, {2000, 1000, 5000}};
  const std::vector<uint32_t> steps = {1, 1, 2, 1, 1563, 64};
  constexpr uint32_t kHeads = 8;
  for (const uint32_t most : {1u, 7u, 396u, 100000u}) {
    const cuda::ChainArgs schedule = Scheduled(ranges, kHeads, {most});
    ASSERT_EQ(schedule.num_sequences, ranges.size());
    for (size_t i = 0; i < ranges.size(); ++i) {
      EXPECT_EQ(schedule.sequences[i].first_block, ranges[i].first_block);
      EXPECT_GE(PlacesOf(schedule, i), steps[i]);
      EXPECT_LT(PlacesOf(schedule, i), steps[i] + schedule.share);
    }
    const uint32_t all = schedule.sequences[ranges.size()].first_step * kHeads;
    EXPECT_LE(schedule.num_thread_blocks, most);
    EXPECT_GE(schedule.num_thread_blocks * schedule.share, all);
    EXPECT_LT((schedule.num_thread_blocks - 1) * schedule.share, all);
  }
  EXPECT_EQ(Scheduled({}, kHeads, {396}).num_thread_blocks, 0);
}

TEST(GpuPlanTest, NoShareIsOfTwoPairsWhereThatCostsFewSteps) {
  constexpr uint32_t kHeads = 8;
  for (const uint32_t tokens : {8192u, 32768u, 32769u, 100000u, 131072u}) {
    for (const cuda::ThreadBlocks most : {cuda::ThreadBlocks{396}, cuda::ThreadBlocks{396, 132}}) {
      const bool wide = most.wide > 0;
      const uint32_t blocks = wide ? most.wide : most.narrow;
      const cuda::ChainArgs schedule = Scheduled({{0, 0, tokens}}, kHeads, most);
      EXPECT_EQ(schedule.wide, wide) << tokens;
      EXPECT_EQ(PlacesOf(schedule, 0) % schedule.share, 0) << tokens;
      EXPECT_LE(schedule.share, (tokens + 63) / 64 * kHeads / blocks + (wide ? 8 : 4)) << tokens;
      EXPECT_LE(schedule.num_thread_blocks, blocks) << tokens;
    }
  }
  // A share for each pair would leave a third of the thread blocks without work.
  const std::vector<cuda::TokenRange> many(32, {0, 0, 32768});
  const cuda::ChainArgs schedule = Scheduled(many, kHeads, {396, 132});
  EXPECT_FALSE(schedule.wide);
  EXPECT_EQ(PlacesOf(schedule, 0), 512);
  EXPECT_EQ(schedule.share, 332);
}

TEST(GpuPlanTest, RefusesStepsThatDoNotFitTheirNumbers) {
  const std::vector<cuda::TokenRange> ranges(cuda::kMaxSequences, {0, 0, 1u << 23});
  cuda::ChainArgs schedule{};
  EXPECT_TRUE(cuda::Schedule(ranges, 128, {396}, &schedule).ok());
  const absl::Status status = cuda::Schedule(ranges, 256, {396}, &schedule);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(status.message(), ::testing::HasSubstr("4294967295"));
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
