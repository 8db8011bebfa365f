// Copies for blocks that are stored already, and when a lease shows them.

#include "service/pool/tick_history.h"
#include "tests/pool/gpu_fixture.h"

namespace sketchkv {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::SizeIs;

using GpuPromotionTest = GpuPoolTest;

TEST_F(GpuPromotionTest, ACommittedPromotionIsShownByTheNextPin) {
  PutChain(0, 2);
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const ReadPins before, pool_->PinChain(KeyOf(1)));
  const BlockKey keys[] = {KeyOf(0), KeyOf(1)};
  auto handles = pool_->ReservePromotions(keys);
  ASSERT_THAT(handles, SizeIs(2));
  EXPECT_EQ(*handles[1].block().key, KeyOf(1));
  EXPECT_EQ(handles[1].block().bytes.data(), before[1].bytes.data());
  EXPECT_THAT(Copies(0, 2), IsEmpty()) << "not before Commit";
  std::memcpy(handles[1].gpu_slot().data(), handles[1].block().bytes.data(), kSlot);
  EXPECT_TRUE(handles[1].Commit());
  handles.clear();  // gives the other slot back
  EXPECT_THAT(Copies(0, 2), ElementsAre(1));
  EXPECT_THAT(before.gpu(), ElementsAre(nullptr, nullptr));
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const ReadPins after, pool_->PinChain(KeyOf(1)));
  EXPECT_TRUE(HoldsPattern(CopyOf(after[1])));
  EXPECT_EQ(pool_->GetStats().promoted_total, 1u);
  EXPECT_EQ(pool_->GetStats().gpu_used_bytes, kSlot);
}

TEST_F(GpuPromotionTest, WhatHasACopyIsPromotedAlreadyOrIsNotSealedIsPassedOver) {
  SKETCHKV_ASSERT_OK(PutRequest(*pool_, GpuRequest(0)));
  SKETCHKV_ASSERT_OK(Put(*pool_, 1, std::nullopt));
  auto half = RequestFor(2, std::nullopt);
  half.range = {0, 1, 0, 2};
  SKETCHKV_ASSERT_OK(PutRequest(*pool_, half));
  const BlockKey keys[] = {KeyOf(0), KeyOf(1), KeyOf(1), KeyOf(2), KeyOf(3)};
  {
    const auto handles = pool_->ReservePromotions(keys);
    ASSERT_THAT(handles, SizeIs(1));
    EXPECT_EQ(*handles[0].block().key, KeyOf(1));
    EXPECT_THAT(pool_->ReservePromotions(keys), IsEmpty());
  }
  EXPECT_THAT(pool_->ReservePromotions(keys), SizeIs(1)) << "after the first was given up";
}

TEST_F(GpuPromotionTest, OnlyCopiesThatWereIdleLongEnoughMakeRoom) {
  PutGpuRoots(0, 8);
  SKETCHKV_ASSERT_OK(Put(*pool_, 8, std::nullopt));
  SKETCHKV_ASSERT_OK(Put(*pool_, 9, std::nullopt));
  Sleep(5);
  EXPECT_TRUE(Found(*pool_, 0));
  Sleep(4);
  EXPECT_EQ(Promote({8}), 0u);
  EXPECT_EQ(pool_->GetStats().demoted_total, 0u);
  Sleep(2);
  EXPECT_EQ(Promote({8, 9}), 2u);
  EXPECT_THAT(Copies(0, 10), ElementsAre(0, 3, 4, 5, 6, 7, 8, 9));
  EXPECT_EQ(pool_->GetStats().demoted_total, 2u);
}

TEST_F(GpuPromotionTest, AWorkingSetLargerThanTheGpuDoesNotGoRound) {
  PutChain(0, 12);
  for (int round = 0; round < 20; ++round) {
    SKETCHKV_ASSERT_OK(pool_->PinChain(KeyOf(11)));
    (void)Promote({0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11});
    Sleep(1);
  }
  EXPECT_EQ(pool_->GetStats().promoted_total, kGpuSlots);
  EXPECT_THAT(Copies(0, 12), ElementsAre(0, 1, 2, 3, 4, 5, 6, 7));
}

TEST_F(GpuPromotionTest, ABlockInPromotionStaysAndOneDeletedMeanwhileGivesItsSlotBack) {
  SKETCHKV_ASSERT_OK(Put(*pool_, 0, std::nullopt));
  const BlockKey keys[] = {KeyOf(0)};
  auto handles = pool_->ReservePromotions(keys);
  ASSERT_THAT(handles, SizeIs(1));
  for (uint64_t root = 100; root < 164; ++root) SKETCHKV_ASSERT_OK(Put(*pool_, root, std::nullopt));
  EXPECT_TRUE(Found(*pool_, 0));
  SKETCHKV_ASSERT_OK(pool_->Delete(KeyOf(0)));
  EXPECT_FALSE(handles[0].Commit());
  EXPECT_EQ(pool_->GetStats().gpu_used_bytes, 0u);
  EXPECT_EQ(pool_->GetStats().promoted_total, 0u);
}

TEST_F(GpuPromotionTest, ALeaseShowsLaterCopiesButPinsAnewOnlyEvery50Ms) {
  PutChain(0, 3);
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const auto lease, pool_->AcquireLease(KeyOf(2), seconds(60)));
  const auto chain = pool_->LeasedChain(0, lease.id).value();
  EXPECT_EQ(Promote({0}), 1u);
  clock_.Advance(milliseconds(49));
  EXPECT_EQ(pool_->LeasedChain(0, lease.id).value(), chain);
  clock_.Advance(milliseconds(1));
  const auto second = pool_->LeasedChain(0, lease.id).value();
  EXPECT_NE(second->gpu()[0], nullptr);
  EXPECT_EQ(second->gpu()[1], nullptr);
  EXPECT_EQ(chain->gpu()[0], nullptr) << "what a pin showed stays";
  clock_.Advance(milliseconds(100));
  EXPECT_EQ(pool_->LeasedChain(0, lease.id).value(), second) << "nothing is new";
  EXPECT_EQ(Promote({1, 2}), 2u);
  EXPECT_THAT(pool_->LeasedChain(0, lease.id).value()->gpu(),
              ::testing::Each(::testing::NotNull()));
  SKETCHKV_ASSERT_OK(Put(*pool_, 50, std::nullopt));
  EXPECT_EQ(Promote({50}), 1u);
  clock_.Advance(milliseconds(100));
  const auto whole = pool_->LeasedChain(0, lease.id).value();
  clock_.Advance(milliseconds(100));
  EXPECT_EQ(pool_->LeasedChain(0, lease.id).value(), whole) << "there is nothing to gain";
}

TEST_F(GpuPromotionTest, ALeaseShowsThatABlockWasWrittenBack) {
  SKETCHKV_ASSERT_OK(PutStale(*pool_, GpuRequest(0)));
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const auto lease, pool_->AcquireLease(KeyOf(0), seconds(60)));
  EXPECT_TRUE((*pool_->LeasedChain(0, lease.id).value())[0].host_stale);
  EXPECT_EQ(WriteBackSome(), 1u);
  clock_.Advance(milliseconds(50));
  EXPECT_FALSE((*pool_->LeasedChain(0, lease.id).value())[0].host_stale);
}

TEST_F(GpuPromotionTest, ALeasedChainKeepsItsCopies) {
  PutGpuChain(0, 8);
  SKETCHKV_ASSERT_OK(pool_->AcquireLease(KeyOf(7), seconds(60)));
  SKETCHKV_ASSERT_OK(Put(*pool_, 8, std::nullopt));
  Sleep(30);
  EXPECT_EQ(Promote({8}), 0u);
  EXPECT_THAT(Copies(0, 9), SizeIs(8));
}

TEST(TickHistoryTest, ATickIsOldWhenASampleSaysSo) {
  TickHistory history(seconds(16));
  const TimePoint start = TimePoint() + seconds(100);
  EXPECT_EQ(history.NewestOld(start), 0u);
  for (int second = 0; second <= 40; ++second) history.Note(start + seconds(second), 10 + second);
  EXPECT_EQ(history.NewestOld(start + seconds(40)), 10u + 24);
  history.Note(start + seconds(1000), 51);
  EXPECT_EQ(history.NewestOld(start + seconds(1000)), 50u);
  EXPECT_EQ(history.NewestOld(start + seconds(1016)), 50u);
}

}  // namespace
}  // namespace sketchkv
