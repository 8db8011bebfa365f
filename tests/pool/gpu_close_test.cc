// The card fails: what is lost, and what goes on.

#include "tests/pool/gpu_fixture.h"

namespace sketchkv {
namespace {

using std::chrono::seconds;
using ::testing::IsEmpty;
using ::testing::SizeIs;
using Code = absl::StatusCode;

using GpuCloseTest = GpuPoolTest;

TEST_F(GpuCloseTest, BlocksWithHostBytesStayAndStaleOnesGoWithTheirSubtrees) {
  PutGpuChain(0, 2);
  SKETCHKV_ASSERT_OK(PutStale(*pool_, GpuRequest(2, 1)));
  SKETCHKV_ASSERT_OK(PutRequest(*pool_, GpuRequest(3, 2)));
  SKETCHKV_ASSERT_OK(PutStale(*pool_, GpuRequest(4, 3)));
  SKETCHKV_ASSERT_OK(Put(*pool_, 5, 4));
  SKETCHKV_ASSERT_OK(Put(*pool_, 6, std::nullopt));
  EXPECT_EQ(pool_->CloseGpu(), 4u);
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const ReadPins kept, pool_->PinChain(KeyOf(1)));
  EXPECT_TRUE(HoldsPattern(kept[0]));
  EXPECT_TRUE(HoldsPattern(kept[1]));
  EXPECT_THAT(kept.gpu(), ::testing::Each(nullptr));
  for (const uint64_t lost : {2, 3, 4, 5}) EXPECT_FALSE(Found(*pool_, lost)) << lost;
  EXPECT_TRUE(Found(*pool_, 6));
  const BlockPool::Stats stats = pool_->GetStats();
  EXPECT_EQ(stats.gpu_lost_total, 4u);
  EXPECT_EQ(stats.blocks, 3u);
  EXPECT_EQ(stats.gpu_blocks, 0u);
  EXPECT_EQ(stats.stale_blocks, 0u);
  EXPECT_EQ(stats.gpu_budget_bytes, 0u);
  EXPECT_EQ(stats.discarded_total, 0u) << "that counts wrong bytes";
  EXPECT_EQ(pool_->CloseGpu(), 0u);
}

TEST_F(GpuCloseTest, NothingGetsACopyAfterwards) {
  SKETCHKV_ASSERT_OK(Put(*pool_, 0, std::nullopt));
  EXPECT_EQ(pool_->CloseGpu(), 0u);
  EXPECT_EQ(Promote({0}), 0u);
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const WriteHandle handle, pool_->Reserve(GpuRequest(1)));
  EXPECT_THAT(handle.gpu_slot(), IsEmpty());
  EXPECT_EQ(pool_->GetStats().gpu_fallback_total, 1u);
}

TEST_F(GpuCloseTest, PinsKeepTheAddressesThatTheyShow) {
  PutGpuChain(0, 2);
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const ReadPins pins, pool_->PinChain(KeyOf(1)));
  const std::byte* const shown = pins.gpu()[1];
  EXPECT_EQ(pool_->CloseGpu(), 0u);
  EXPECT_EQ(pins.gpu()[1], shown);
  EXPECT_EQ(pins[1].gpu, shown);
}

TEST_F(GpuCloseTest, AWriteInFlightLosesItsCellsOnlyIfTheyWereOnTheGpuAlone) {
  SKETCHKV_ASSERT_OK_AND_ASSIGN(WriteHandle stale, pool_->Reserve(GpuRequest(0)));
  SKETCHKV_ASSERT_OK_AND_ASSIGN(WriteHandle written, pool_->Reserve(GpuRequest(1)));
  EXPECT_EQ(pool_->CloseGpu(), 0u);
  EXPECT_THAT(stale.Commit(FillClaimed(stale, KeyOf(0)), HostBytes::kStale),
              StatusIs(Code::kUnavailable, {HashOf(0).ToHex()}));
  SKETCHKV_EXPECT_OK(written.Commit(FillClaimed(written, KeyOf(1))));
  { const WriteHandle ended = std::move(stale); }
  EXPECT_EQ(pool_->GetStats().blocks, 1u) << "no cell of the other is there";
  SKETCHKV_EXPECT_OK(PutRequest(*pool_, GpuRequest(0)));
}

TEST_F(GpuCloseTest, AStaleBlockInWritingIsLostAndItsWriterToldSo) {
  auto request = GpuRequest(0);
  request.range = {0, 1, 0, 2};
  SKETCHKV_ASSERT_OK(PutStale(*pool_, request));
  request.range = {1, 1, 0, 2};
  SKETCHKV_ASSERT_OK_AND_ASSIGN(WriteHandle handle, pool_->Reserve(request));
  EXPECT_EQ(pool_->CloseGpu(), 1u);
  EXPECT_THAT(handle.Commit(FillClaimed(handle, KeyOf(0))), StatusIs(Code::kNotFound));
}

TEST_F(GpuCloseTest, APromotionInFlightComesToNothing) {
  SKETCHKV_ASSERT_OK(Put(*pool_, 0, std::nullopt));
  const BlockKey keys[] = {KeyOf(0)};
  auto handles = pool_->ReservePromotions(keys);
  ASSERT_THAT(handles, SizeIs(1));
  EXPECT_EQ(pool_->CloseGpu(), 0u);
  EXPECT_FALSE(handles[0].Commit());
  EXPECT_TRUE(HoldsPattern(pool_->Pin(KeyOf(0)).value()[0]));
}

TEST_F(GpuCloseTest, AWriteBackThatEndsTooLateChangesNothing) {
  SKETCHKV_ASSERT_OK(PutStale(*pool_, GpuRequest(0)));
  const ReadPins stale = pool_->PinStale(1);
  EXPECT_EQ(pool_->CloseGpu(), 1u);
  pool_->MarkWritten(stale, 0);
  EXPECT_FALSE(Found(*pool_, 0));
}

TEST_F(GpuCloseTest, ALeaseShowsNoCopyFromThenOnAndEndsWhereABlockWasLost) {
  PutGpuChain(0, 2);
  SKETCHKV_ASSERT_OK(PutStale(*pool_, GpuRequest(2, 1)));
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const auto kept, pool_->AcquireLease(KeyOf(1), seconds(9)));
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const auto lost, pool_->AcquireLease(KeyOf(2), seconds(9)));
  EXPECT_EQ(pool_->CloseGpu(), 1u);
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const auto chain, pool_->LeasedChain(0, kept.id));
  EXPECT_THAT(chain->gpu(), ::testing::Each(nullptr));
  EXPECT_THAT(pool_->LeasedChain(0, lost.id), StatusIs(Code::kNotFound));
}

TEST_F(GpuCloseTest, ALeaseOverADeletedBlockThatWasLostHasEnded) {
  SKETCHKV_ASSERT_OK(PutStale(*pool_, GpuRequest(0)));
  SKETCHKV_ASSERT_OK(PutRequest(*pool_, GpuRequest(1, 0)));
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const auto lease, pool_->AcquireLease(KeyOf(1), seconds(9)));
  SKETCHKV_ASSERT_OK(pool_->Delete(KeyOf(0)));
  SKETCHKV_EXPECT_OK(pool_->LeasedChain(0, lease.id));
  EXPECT_EQ(pool_->CloseGpu(), 0u) << "they were gone already";
  EXPECT_THAT(pool_->LeasedChain(0, lease.id), StatusIs(Code::kNotFound));
}

}  // namespace
}  // namespace sketchkv
