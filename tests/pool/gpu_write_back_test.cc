// Blocks that were written on the GPU alone, until their host bytes are there.

#include "tests/pool/gpu_fixture.h"

namespace sketchkv {
namespace {

using ::testing::ElementsAre;
using Code = absl::StatusCode;

using GpuWriteBackTest = GpuPoolTest;

TEST_F(GpuWriteBackTest, AStaleBlockShowsSoUntilItIsWrittenBack) {
  SKETCHKV_ASSERT_OK(PutStale(*pool_, GpuRequest(1)));
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const ReadPins before, pool_->Pin(KeyOf(1)));
  EXPECT_TRUE(before[0].host_stale);
  EXPECT_FALSE(HoldsPattern(before[0]));
  EXPECT_TRUE(HoldsPattern(CopyOf(before[0])));
  EXPECT_EQ(pool_->GetStats().stale_blocks, 1u);
  EXPECT_EQ(WriteBackSome(), 1u);
  EXPECT_EQ(pool_->GetStats().stale_blocks, 0u);
  EXPECT_TRUE(before[0].host_stale) << "as it was when pinned";
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const ReadPins after, pool_->Pin(KeyOf(1)));
  EXPECT_FALSE(after[0].host_stale);
  EXPECT_TRUE(HoldsPattern(after[0]));
  EXPECT_EQ(after[0].gpu, before[0].gpu);
  EXPECT_EQ(WriteBackSome(), 0u);
}

TEST_F(GpuWriteBackTest, OneStalePartMakesTheBlockStale) {
  auto request = GpuRequest(1);
  request.range = {0, 1, 0, 2};
  SKETCHKV_ASSERT_OK(PutStale(*pool_, request));
  EXPECT_EQ(WriteBackSome(), 0u) << "it is not sealed yet";
  request.range = {1, 1, 0, 2};
  {
    SKETCHKV_ASSERT_OK_AND_ASSIGN(WriteHandle handle, pool_->Reserve(request));
    SKETCHKV_ASSERT_OK(handle.Commit(FillOnGpu(handle, KeyOf(1), HostBytes::kWritten)));
  }
  EXPECT_TRUE(pool_->Pin(KeyOf(1)).value()[0].host_stale);
  EXPECT_EQ(WriteBackSome(), 1u);
  EXPECT_TRUE(HoldsPattern(pool_->Pin(KeyOf(1)).value()[0]));
}

TEST_F(GpuWriteBackTest, AStaleCopyIsNotDroppedBeforeItIsWrittenBack) {
  for (uint64_t root = 0; root < 8; ++root) {
    SKETCHKV_ASSERT_OK(PutStale(*pool_, GpuRequest(root)));
  }
  SKETCHKV_ASSERT_OK(PutRequest(*pool_, GpuRequest(8)));
  EXPECT_THAT(Copies(0, 9), ElementsAre(0, 1, 2, 3, 4, 5, 6, 7));
  EXPECT_EQ(pool_->GetStats().gpu_fallback_total, 1u);
  EXPECT_EQ(WriteBackSome(), 8u);
  SKETCHKV_ASSERT_OK(PutRequest(*pool_, GpuRequest(9)));
  EXPECT_THAT(Copies(0, 10), ElementsAre(1, 2, 3, 4, 5, 6, 7, 9));
}

TEST_F(GpuWriteBackTest, PinStaleIsBoundedAndNoUse) {
  SKETCHKV_ASSERT_OK(PutStale(*pool_, GpuRequest(0)));
  SKETCHKV_ASSERT_OK(PutStale(*pool_, GpuRequest(1)));
  EXPECT_EQ(pool_->PinStale(1).size(), 1u);
  EXPECT_EQ(WriteBackSome(1), 1u);
  EXPECT_EQ(WriteBackSome(1), 1u);
  EXPECT_EQ(WriteBackSome(1), 0u);
  for (uint64_t root = 100; root < 163; ++root) SKETCHKV_ASSERT_OK(Put(*pool_, root, std::nullopt));
  EXPECT_FALSE(Found(*pool_, 0)) << "the least recently used";
  EXPECT_TRUE(Found(*pool_, 1));
}

TEST_F(GpuWriteBackTest, AStaleBlockIsEvictedAsAnyOther) {
  SKETCHKV_ASSERT_OK(PutStale(*pool_, GpuRequest(0)));
  for (uint64_t root = 100; root < 164; ++root) SKETCHKV_ASSERT_OK(Put(*pool_, root, std::nullopt));
  EXPECT_FALSE(Found(*pool_, 0));
  EXPECT_EQ(pool_->GetStats().stale_blocks, 0u);
  EXPECT_EQ(pool_->GetStats().gpu_used_bytes, 0u);
}

TEST_F(GpuWriteBackTest, ADeletedStaleBlockIsNotWrittenBackAndItsPinStillReadsIt) {
  SKETCHKV_ASSERT_OK(PutStale(*pool_, GpuRequest(0)));
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const ReadPins pins, pool_->Pin(KeyOf(0)));
  SKETCHKV_ASSERT_OK(pool_->Delete(KeyOf(0)));
  EXPECT_EQ(pool_->PinStale(10).size(), 0u);
  SKETCHKV_ASSERT_OK(PutRequest(*pool_, GpuRequest(0)));
  EXPECT_TRUE(HoldsPattern(CopyOf(pins[0])));
}

TEST_F(GpuWriteBackTest, StalenessIsToldOfThePinnedBlockNotOfItsKey) {
  SKETCHKV_ASSERT_OK(PutStale(*pool_, GpuRequest(0)));
  SKETCHKV_ASSERT_OK(PutStale(*pool_, GpuRequest(2, 1)));
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const ReadPins pins, pool_->Pin(KeyOf(0)));
  const ReadPins stale = pool_->PinStale(10);
  ASSERT_EQ(stale.size(), 2u) << "an orphan too";
  EXPECT_TRUE(*pool_->IsStale(stale, 1));
  EXPECT_TRUE(*pool_->IsStale(pins, 0));
  WriteBack(*pool_, stale);
  EXPECT_FALSE(*pool_->IsStale(stale, 1));
  EXPECT_FALSE(*pool_->IsStale(pins, 0));
  SKETCHKV_ASSERT_OK(pool_->Delete(KeyOf(0)));
  SKETCHKV_ASSERT_OK(PutStale(*pool_, GpuRequest(0)));
  EXPECT_THAT(pool_->IsStale(pins, 0), StatusIs(Code::kNotFound, {HashOf(0).ToHex()}));
}

TEST_F(GpuWriteBackTest, ABlockWithoutACopyCannotBeStale) {
  SKETCHKV_ASSERT_OK_AND_ASSIGN(WriteHandle handle, pool_->Reserve(RequestFor(1, std::nullopt)));
  const std::vector<uint32_t> checksums = FillClaimed(handle, KeyOf(1));
  EXPECT_THAT(handle.Commit(checksums, HostBytes::kStale),
              StatusIs(Code::kFailedPrecondition, {HashOf(1).ToHex(), "GPU"}));
  SKETCHKV_EXPECT_OK(handle.Commit(checksums));
}

}  // namespace
}  // namespace sketchkv
