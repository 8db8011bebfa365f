#include <malloc.h>

#include "tests/pool/pool_fixture.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SKETCHKV_TEST_OWN_MALLOC 0
#else
#define SKETCHKV_TEST_OWN_MALLOC 1
#endif

namespace sketchkv {
namespace {

using ::testing::ElementsAre;
using ::testing::Pair;
using enum BlockEventType;
using Code = absl::StatusCode;

using EvictionTest = PoolTest;

TEST_F(EvictionTest, TheLeastRecentlyUsedLeafGoesFirst) {
  for (uint64_t root = 0; root < 64; ++root) SKETCHKV_ASSERT_OK(Put(*pool_, root, std::nullopt));
  EXPECT_TRUE(Found(*pool_, 0));  // Pin is a use
  const std::vector<BlockHash> chain = {HashOf(1)};
  EXPECT_EQ(pool_->LookupPrefix(0, {}, chain), 1u);  // and so is a lookup
  SKETCHKV_ASSERT_OK(Put(*pool_, 100, std::nullopt));
  SKETCHKV_ASSERT_OK(Put(*pool_, 101, std::nullopt));
  EXPECT_FALSE(Found(*pool_, 2));
  EXPECT_FALSE(Found(*pool_, 3));
  for (const uint64_t kept : {0, 1, 4, 63, 100, 101}) EXPECT_TRUE(Found(*pool_, kept)) << kept;
  EXPECT_EQ(pool_->GetStats().evicted_total, 2u);
}

TEST_F(EvictionTest, AboveTheWatermarkExpireEvictsTheColdestLeaves) {
  BlockPool::Options options;
  options.budget_bytes = kBudget;
  options.high_watermark = 0.75;
  BlockPool pool(options, &clock_);
  for (uint64_t root = 0; root < 64; ++root) SKETCHKV_ASSERT_OK(Put(pool, root, std::nullopt));
  EXPECT_EQ(pool.GetStats().used_bytes, kBudget) << "putting does not stop at the watermark";
  pool.Expire();
  EXPECT_EQ(pool.GetStats().used_bytes, kBudget / 4 * 3);
  EXPECT_EQ(pool.GetStats().evicted_total, 16u);
  EXPECT_FALSE(Found(pool, 15));
  EXPECT_TRUE(Found(pool, 16));
  pool.Expire();
  EXPECT_EQ(pool.GetStats().evicted_total, 16u);
}

TEST_F(EvictionTest, AParentNeverGoesBeforeItsSealedChild) {
  PutChain(0, 64);
  const uint64_t before = pool_->events().next_sequence();
  for (uint64_t root = 100; root < 103; ++root) SKETCHKV_ASSERT_OK(Put(*pool_, root, std::nullopt));
  EXPECT_THAT(EventsFrom(before),
              ElementsAre(Pair(kEvicted, HashOf(63)), Pair(kStored, HashOf(100)),
                          Pair(kSealed, HashOf(100)), Pair(kEvicted, HashOf(62)),
                          Pair(kStored, HashOf(101)), Pair(kSealed, HashOf(101)),
                          Pair(kEvicted, HashOf(61)), Pair(kStored, HashOf(102)),
                          Pair(kSealed, HashOf(102))));
  EXPECT_TRUE(Found(*pool_, 60));
}

TEST_F(EvictionTest, TheParentOfTheBlockBeingPutStays) {
  for (uint64_t root = 0; root < 64; ++root) SKETCHKV_ASSERT_OK(Put(*pool_, root, std::nullopt));
  SKETCHKV_ASSERT_OK(Put(*pool_, 100, 0));  // 0 is the coldest leaf
  EXPECT_TRUE(Found(*pool_, 100));
  EXPECT_FALSE(Found(*pool_, 1));
}

TEST_F(EvictionTest, AnUnsealedBlockIsEvictableAndAnUnsealedChildDoesNotHoldItsParent) {
  SKETCHKV_ASSERT_OK(Put(*pool_, 0, std::nullopt));
  auto half = RequestFor(1, 0);
  half.range = {0, 1, 0, 2};
  SKETCHKV_ASSERT_OK(PutRequest(*pool_, half));
  for (uint64_t root = 10; root < 72; ++root) SKETCHKV_ASSERT_OK(Put(*pool_, root, std::nullopt));
  SKETCHKV_ASSERT_OK(Put(*pool_, 100, std::nullopt));
  EXPECT_FALSE(Found(*pool_, 0));
  half.range = {1, 1, 0, 2};
  SKETCHKV_ASSERT_OK(PutRequest(*pool_, half));  // still there, as an orphan: now it is sealed
  EXPECT_FALSE(Found(*pool_, 1));
  SKETCHKV_ASSERT_OK(Put(*pool_, 0, std::nullopt));
  EXPECT_TRUE(Found(*pool_, 1));
  EXPECT_TRUE(HoldsPattern(pool_->Pin(KeyOf(1)).value()[0]));
}

TEST_F(EvictionTest, WhatIsPinnedOrInWritingIsNeverEvicted) {
  std::vector<ReadPins> pins;
  std::vector<WriteHandle> handles;
  for (uint64_t root = 0; root < 32; ++root) {
    SKETCHKV_ASSERT_OK(Put(*pool_, root, std::nullopt));
    pins.push_back(pool_->Pin(KeyOf(root)).value());
    handles.push_back(pool_->Reserve(RequestFor(1000 + root, std::nullopt)).value());
  }
  for (const size_t slot_bytes : {kSlot, kSlot / 2}) {
    EXPECT_THAT(
        Put(*pool_, 5000, std::nullopt, slot_bytes, 1),
        StatusIs(Code::kResourceExhausted, {std::to_string(slot_bytes), std::to_string(kBudget)}));
  }
  for (uint64_t root = 0; root < 32; ++root) EXPECT_TRUE(HoldsPattern(pins[root][0]));
  pins.pop_back();
  handles.pop_back();
  SKETCHKV_EXPECT_OK(Put(*pool_, 5000, std::nullopt, kSlot / 2, 1));
  EXPECT_FALSE(Found(*pool_, 31));
}

TEST_F(EvictionTest, ABlockLargerThanTheBudgetIsRefused) {
  PutChain(0, 10);
  EXPECT_THAT(
      Put(*pool_, 100, std::nullopt, kBudget + 64, 1),
      StatusIs(Code::kResourceExhausted, {std::to_string(kBudget + 64), std::to_string(kBudget)}));
  EXPECT_THAT(Put(*pool_, 100, std::nullopt, size_t{0} - 64, 1),
              StatusIs(Code::kResourceExhausted, {std::to_string(kBudget)}));
  EXPECT_EQ(pool_->GetStats().blocks, 10u);
  // As large as the budget: takes it all, many pages at once, climbing a chain of one leaf.
  SKETCHKV_EXPECT_OK(Put(*pool_, 100, std::nullopt, kBudget, 1));
  EXPECT_EQ(pool_->GetStats().blocks, 1u);
}

TEST_F(EvictionTest, TenTimesTheBudgetStaysInsideTheBudget) {
  size_t refused = 0;
  for (uint64_t number = 0; number < 640; ++number) {
    const uint8_t model = number % 3;
    const size_t slot_bytes = model == 0 ? 4096 : model == 1 ? 1088 : 3 * 4096;
    const bool root = number / 3 % 20 == 0;
    const std::optional<uint64_t> parent = root ? std::nullopt : std::optional(number - 3);
    const bool ancestors_found = root || Found(*pool_, number - 3, model);
    if (!Put(*pool_, number, parent, slot_bytes, model).ok()) ++refused;
    const BlockPool::Stats stats = pool_->GetStats();
    ASSERT_LE(stats.page_bytes, kBudget);
    ASSERT_LE(stats.used_bytes, stats.page_bytes);
    ASSERT_EQ(Found(*pool_, number, model), ancestors_found);
  }
  EXPECT_EQ(refused, 0u);
  EXPECT_GT(pool_->GetStats().evicted_total, 300u);
}

class ClassChangeTest : public PoolTest {
 protected:
  // Pages of 128 KiB: 32 slots of 4 KiB, 14 of 9 KiB.
  ClassChangeTest() : PoolTest(size_t{4} << 20) {}
  static constexpr size_t kSlotB = 9 * 1024;
  [[nodiscard]] size_t CountFound(uint64_t begin, uint64_t end, uint8_t model) {
    std::vector<BlockHash> hashes;
    size_t count = 0;
    for (uint64_t number = begin; number < end; ++number) {
      const BlockHash hash = HashOf(number);
      count += pool_->LookupPrefix(0, KeyOf(0, model).fingerprint, {&hash, 1});
    }
    return count;
  }
};

TEST_F(ClassChangeTest, AFullColderModelYieldsAnotherItsShare) {
  for (uint64_t root = 0; root < 1024; ++root) SKETCHKV_ASSERT_OK(Put(*pool_, root, std::nullopt));
  EXPECT_EQ(pool_->GetStats().blocks, 1024u);
  const auto put_b = [&](uint64_t root) { return Put(*pool_, root, std::nullopt, kSlotB, 1); };
  for (uint64_t root = 0; root < 140; ++root) {
    SKETCHKV_ASSERT_OK(put_b(root));
    ASSERT_LE(pool_->GetStats().page_bytes, size_t{4} << 20);
  }
  // Ten pages of B, taken from the ten coldest of A, and not one block of B lost.
  EXPECT_EQ(CountFound(0, 140, 1), 140u);
  EXPECT_EQ(CountFound(0, 320, 0), 0u);
  EXPECT_EQ(CountFound(320, 1024, 0), 704u);
}

TEST_F(ClassChangeTest, AHotModelKeepsItsBlocksWhileAColdOneFloods) {
  for (uint64_t root = 0; root < 280; ++root) {
    SKETCHKV_ASSERT_OK(Put(*pool_, root, std::nullopt, kSlotB, 1));
  }
  for (uint64_t root = 0; root < 5000; ++root) {
    SKETCHKV_ASSERT_OK(Put(*pool_, root, std::nullopt));
    if (root % 100 == 0) {
      EXPECT_EQ(CountFound(0, 280, 1), 280u);
    }
  }
  EXPECT_EQ(CountFound(0, 280, 1), 280u);
}

TEST_F(ClassChangeTest, AChainGivesItsTipAndKeepsItsRoot) {
  PutChain(0, 1024);
  SKETCHKV_ASSERT_OK(Put(*pool_, 0, std::nullopt, kSlotB, 1));
  EXPECT_EQ(pool_->GetStats().evicted_total, 32u);
  EXPECT_TRUE(Found(*pool_, 1024 - 33));
  EXPECT_FALSE(Found(*pool_, 1024 - 32));
}

TEST_F(ClassChangeTest, APageWithAPinnedBlockIsPassedOver) {
  for (uint64_t root = 0; root < 1024; ++root) SKETCHKV_ASSERT_OK(Put(*pool_, root, std::nullopt));
  std::vector<ReadPins> pins;
  for (uint64_t page = 0; page < 31; ++page) pins.push_back(pool_->Pin(KeyOf(page * 32)).value());
  SKETCHKV_ASSERT_OK(Put(*pool_, 0, std::nullopt, kSlotB, 1));
  EXPECT_EQ(CountFound(31 * 32, 1024, 0), 0u);
  EXPECT_EQ(CountFound(0, 31 * 32, 0), 31u * 32);
  for (const ReadPins& pin : pins) EXPECT_TRUE(HoldsPattern(pin[0]));
  // Nothing else can change class: B lives on what it has.
  for (uint64_t root = 1; root < 40; ++root) {
    SKETCHKV_ASSERT_OK(Put(*pool_, root, std::nullopt, kSlotB, 1));
  }
  EXPECT_EQ(CountFound(0, 40, 1), 14u);
}

class LongChainTest : public PoolTest {
 protected:
  LongChainTest() : PoolTest(size_t{64} << 20) {}
  static constexpr uint64_t kLength = 100'000;
};

TEST_F(LongChainTest, AHundredThousandBlocksWorkEverywhere) {
  for (uint64_t number = kLength - 1; number > 0; --number) {  // children first
    SKETCHKV_ASSERT_OK(Put(*pool_, number, number - 1, 256));
  }
  EXPECT_FALSE(Found(*pool_, kLength - 1));
  SKETCHKV_ASSERT_OK(Put(*pool_, 0, std::nullopt, 256));
  {
    SKETCHKV_ASSERT_OK_AND_ASSIGN(const ReadPins chain, pool_->PinChain(KeyOf(kLength - 1)));
    ASSERT_EQ(chain.size(), kLength);
    EXPECT_EQ(*chain[kLength / 2].key, KeyOf(kLength / 2));
    SKETCHKV_ASSERT_OK(pool_->AcquireLease(KeyOf(kLength - 1), std::chrono::seconds(1)));
  }
  clock_.Advance(std::chrono::seconds(2));
  pool_->Expire();
  EXPECT_EQ(pool_->Delete(KeyOf(10)).value(), kLength - 10);
  EXPECT_EQ(pool_->GetStats().blocks, 10u);
  EXPECT_EQ(pool_->GetStats().pinned_bytes, 0u);
  PutChain(10, kLength, 9, 256);  // and its end with the pool
}

// README.md promises at most 200 bytes for a block of 8 cells, its slot not counted.
TEST(PoolMemoryTest, IndexAndEntryStaySmall) {
  if (!SKETCHKV_TEST_OWN_MALLOC) GTEST_SKIP() << "a sanitizer's malloc has other overheads";
  FakeClock clock;
  BlockPool::Options options;
  options.budget_bytes = size_t{1024} << 20;
  options.event_capacity = 0;
  BlockPool pool(options, &clock);
  constexpr uint64_t kBlocks = 1'000'000;
  const size_t before = mallinfo2().uordblks + mallinfo2().hblkhd;
  for (uint64_t number = 0; number < kBlocks; ++number) {
    auto request = RequestFor(number, number % 64 == 0 ? std::nullopt : std::optional(number - 1));
    request.shape = {4, 2, kBlockTokens, 512};
    request.range = {0, 4, 0, 2};
    WriteHandle handle = pool.Reserve(request).value();
    SKETCHKV_ASSERT_OK(handle.Commit(std::vector<uint32_t>(8)));
  }
  const size_t after = mallinfo2().uordblks + mallinfo2().hblkhd;
  const double bytes = static_cast<double>(after - before) / kBlocks;
  RecordProperty("bytes_per_block", std::to_string(bytes));
  std::printf("%.1f bytes a block\n", bytes);
  EXPECT_LE(bytes, 200.0);
}

}  // namespace
}  // namespace sketchkv
