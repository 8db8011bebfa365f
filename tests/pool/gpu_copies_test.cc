// The second slots of blocks: who has one, who loses it, and what pins show of it.

#include "tests/pool/gpu_fixture.h"

namespace sketchkv {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::SizeIs;

using GpuCopiesTest = GpuPoolTest;

TEST_F(GpuCopiesTest, ABlockThatWantsTheGpuGetsASecondSlotThatPinsShow) {
  SKETCHKV_ASSERT_OK(Put(*pool_, 0, std::nullopt));
  std::byte* address = nullptr;
  {
    SKETCHKV_ASSERT_OK_AND_ASSIGN(WriteHandle handle, pool_->Reserve(GpuRequest(1, 0)));
    ASSERT_THAT(handle.gpu_slot(), SizeIs(kSlot));
    address = handle.gpu_slot().data();
    EXPECT_TRUE(memory_.Contains(address));
    SKETCHKV_ASSERT_OK(handle.Commit(FillClaimed(handle, KeyOf(1))));
  }
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const ReadPins chain, pool_->PinChain(KeyOf(1)));
  EXPECT_EQ(chain[0].gpu, nullptr);
  EXPECT_EQ(chain[1].gpu, address);
  EXPECT_FALSE(chain[1].host_stale);
  EXPECT_TRUE(HoldsPattern(chain[1]));
  EXPECT_THAT(chain.gpu(), ElementsAre(nullptr, address));
  const BlockPool::Stats stats = pool_->GetStats();
  EXPECT_EQ(stats.gpu_budget_bytes, kGpuSlots * kSlot);
  EXPECT_EQ(stats.gpu_page_bytes, kSlot);
  EXPECT_EQ(stats.gpu_used_bytes, kSlot);
  EXPECT_EQ(stats.gpu_blocks, 1u);
  EXPECT_EQ(stats.used_bytes, 2 * kSlot);
}

TEST_F(GpuCopiesTest, ARunEndsWhereTheNextBlockLiesElsewhereAndBehindAShortOneOnTheGpu) {
  for (const uint64_t on_host : {0, 1}) SKETCHKV_ASSERT_OK(Put(*pool_, on_host, std::nullopt));
  for (const uint64_t on_gpu : {2, 3}) SKETCHKV_ASSERT_OK(PutRequest(*pool_, GpuRequest(on_gpu)));
  auto short_one = GpuRequest(4);
  short_one.num_tokens = short_one.shape.block_tokens - 1;
  SKETCHKV_ASSERT_OK(PutRequest(*pool_, short_one));
  const auto ends = [&](std::vector<uint64_t> numbers) {
    std::vector<BlockKey> keys;
    for (const uint64_t number : numbers) keys.push_back(KeyOf(number));
    const absl::StatusOr<ReadPins> pins = pool_->PinAll(keys);
    const std::span<const size_t> found = pins->run_ends();
    return std::vector<size_t>(found.begin(), found.end());
  };
  EXPECT_THAT(ends({0, 1}), ElementsAre(2));
  EXPECT_THAT(ends({2, 3, 4}), ElementsAre(3));
  EXPECT_THAT(ends({0, 1, 2, 3, 0}), ElementsAre(2, 4, 5));
  EXPECT_THAT(ends({4, 2, 4, 4, 3}), ElementsAre(1, 3, 4, 5));
  EXPECT_THAT(ReadPins().run_ends(), IsEmpty());
}

TEST_F(GpuCopiesTest, WhoDoesNotWantTheGpuGetsNoSlotThere) {
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const WriteHandle handle,
                                pool_->Reserve(RequestFor(1, std::nullopt)));
  EXPECT_THAT(handle.gpu_slot(), IsEmpty());
  EXPECT_EQ(pool_->GetStats().gpu_fallback_total, 0u);
}

TEST_F(GpuCopiesTest, AStoredBlockGetsNoSlotByASecondPut) {
  auto request = GpuRequest(1);
  request.range = {0, 1, 0, 2};
  request.want_gpu = false;
  SKETCHKV_ASSERT_OK(PutRequest(*pool_, request));
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const WriteHandle handle, pool_->Reserve(GpuRequest(1)));
  EXPECT_THAT(handle.gpu_slot(), IsEmpty());
}

TEST_F(GpuCopiesTest, TheLeastRecentlyUsedCopyGoesForANewOne) {
  PutGpuRoots(0, 8);
  EXPECT_TRUE(Found(*pool_, 0));
  SKETCHKV_ASSERT_OK(PutRequest(*pool_, GpuRequest(8)));
  EXPECT_THAT(Copies(0, 9), ElementsAre(0, 2, 3, 4, 5, 6, 7, 8));
  EXPECT_TRUE(Found(*pool_, 1)) << "only the copy went";
  EXPECT_EQ(pool_->GetStats().demoted_total, 1u);
  EXPECT_EQ(pool_->GetStats().evicted_total, 0u);
}

TEST_F(GpuCopiesTest, AChainLosesTheCopiesAtItsTipFirst) {
  PutGpuChain(0, 6);
  SKETCHKV_ASSERT_OK(pool_->PinChain(KeyOf(5)));  // one tick for all
  PutGpuRoots(10, 14);
  EXPECT_THAT(Copies(0, 20), ElementsAre(0, 1, 2, 3, 10, 11, 12, 13));
}

TEST_F(GpuCopiesTest, TheCopyOfTheParentOfABlockBeingPutStays) {
  PutGpuRoots(0, 8);
  SKETCHKV_ASSERT_OK(PutRequest(*pool_, GpuRequest(8, 0)));
  EXPECT_THAT(Copies(0, 9), ElementsAre(0, 2, 3, 4, 5, 6, 7, 8));
}

TEST_F(GpuCopiesTest, APinnedBlockKeepsItsCopyAndTheNextPutFallsBackToTheHost) {
  PutGpuChain(0, 8);
  std::optional<ReadPins> pins = pool_->PinChain(KeyOf(7)).value();
  const std::vector<std::byte*> shown(pins->gpu().begin(), pins->gpu().end());
  SKETCHKV_ASSERT_OK(PutRequest(*pool_, GpuRequest(8, 7)));
  EXPECT_THAT(Copies(8, 9), IsEmpty());
  EXPECT_TRUE(Found(*pool_, 8));
  EXPECT_EQ(pool_->GetStats().gpu_fallback_total, 1u);
  EXPECT_EQ(pool_->GetStats().demoted_total, 0u);
  EXPECT_EQ(shown, std::vector<std::byte*>(pins->gpu().begin(), pins->gpu().end()));
  pins.reset();
  SKETCHKV_ASSERT_OK(PutRequest(*pool_, GpuRequest(9)));
  EXPECT_THAT(Copies(0, 10), ElementsAre(0, 1, 2, 3, 4, 5, 6, 9));
}

TEST_F(GpuCopiesTest, ACopyOutlivesTheDeleteOfItsBlockAsLongAsThePin) {
  PutGpuChain(0, 2);
  std::optional<ReadPins> pins = pool_->PinChain(KeyOf(1)).value();
  ASSERT_EQ(pool_->Delete(KeyOf(0)).value(), 2u);
  EXPECT_EQ(pool_->GetStats().gpu_used_bytes, 2 * kSlot);
  EXPECT_NE((*pins)[1].gpu, nullptr);
  pins.reset();
  EXPECT_EQ(pool_->GetStats().gpu_used_bytes, 0u);
  EXPECT_EQ(pool_->GetStats().gpu_blocks, 0u);
}

TEST_F(GpuCopiesTest, EvictionDeleteAndExpiryFreeBothSlots) {
  PutGpuChain(0, 2);
  for (uint64_t root = 100; root < 164; ++root) SKETCHKV_ASSERT_OK(Put(*pool_, root, std::nullopt));
  EXPECT_EQ(pool_->GetStats().gpu_used_bytes, 0u);
  SKETCHKV_ASSERT_OK(PutRequest(*pool_, GpuRequest(1)));
  SKETCHKV_ASSERT_OK(pool_->Delete(KeyOf(1)));
  EXPECT_EQ(pool_->GetStats().gpu_used_bytes, 0u);
  auto half = GpuRequest(2);
  half.range = {0, 1, 0, 2};
  SKETCHKV_ASSERT_OK(PutRequest(*pool_, half));
  EXPECT_EQ(pool_->GetStats().gpu_used_bytes, kSlot);
  clock_.Advance(std::chrono::seconds(31));
  pool_->Expire();
  EXPECT_EQ(pool_->GetStats().gpu_used_bytes, 0u);
  { const WriteHandle dropped = pool_->Reserve(GpuRequest(3)).value(); }
  EXPECT_EQ(pool_->GetStats().gpu_used_bytes, 0u);
}

TEST_F(GpuCopiesTest, ASlotLargerThanAnyChunkFallsBackAndDropsNobody) {
  PutGpuChain(0, 8);
  SKETCHKV_ASSERT_OK(PutRequest(*pool_, GpuRequest(0, std::nullopt, 9 * kSlot, 1)));
  EXPECT_EQ(pool_->GetStats().gpu_blocks, 8u);
  EXPECT_EQ(pool_->GetStats().gpu_fallback_total, 1u);
}

TEST_F(GpuCopiesTest, AnotherSizeClassGetsRoomFromTheColdestCopies) {
  PutGpuRoots(0, 8);
  SKETCHKV_ASSERT_OK(PutRequest(*pool_, GpuRequest(0, std::nullopt, 2 * kSlot, 1)));
  EXPECT_THAT(Copies(0, 8), ElementsAre(2, 3, 4, 5, 6, 7));
  EXPECT_THAT(Copies(0, 1, 1), ElementsAre(0));
}

TEST_F(PoolTest, WithoutAGpuEveryWishFallsBack) {
  auto request = RequestFor(1, std::nullopt);
  request.want_gpu = true;
  SKETCHKV_ASSERT_OK(PutRequest(*pool_, request));
  const ReadPins pins = pool_->Pin(KeyOf(1)).value();
  EXPECT_THAT(pins.gpu(), Each(nullptr));
  EXPECT_EQ(pool_->GetStats().gpu_fallback_total, 1u);
}

}  // namespace
}  // namespace sketchkv
