#include "service/pool/block_pool.h"

#include "tests/pool/pool_fixture.h"

namespace sketchkv {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::Pair;
using ::testing::SizeIs;
using enum BlockEventType;
using Code = absl::StatusCode;

using BlockPoolTest = PoolTest;

BlockPool::ReserveRequest Part(uint64_t number, CellRange range) {
  BlockPool::ReserveRequest request = RequestFor(number, std::nullopt);
  request.range = range;
  return request;
}

TEST_F(BlockPoolTest, ASealedBlockShowsItsBytesAndChecksums) {
  SKETCHKV_ASSERT_OK(Put(*pool_, 1, std::nullopt));
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const ReadPins pins, pool_->Pin(KeyOf(1)));
  ASSERT_EQ(pins.size(), 1u);
  EXPECT_TRUE(HoldsPattern(pins[0]));
  EXPECT_EQ(pins[0].num_tokens, kBlockTokens);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(pins[0].bytes.data()) % 64, 0u);
}

TEST_F(BlockPoolTest, TheFirstWriterWinsPerCell) {
  SKETCHKV_ASSERT_OK(PutRequest(*pool_, Part(1, {0, 1, 0, 2})));
  SKETCHKV_ASSERT_OK_AND_ASSIGN(WriteHandle handle, pool_->Reserve(Part(1, {0, 2, 1, 1})));
  ASSERT_THAT(handle.claimed(), SizeIs(1));
  EXPECT_EQ(handle.claimed()[0].layer, 1u);
  EXPECT_EQ(handle.claimed()[0].head, 1u);
  EXPECT_FALSE(handle.Commit(FillClaimed(handle, KeyOf(1))).value().sealed);
  EXPECT_FALSE(Found(*pool_, 1));
  SKETCHKV_ASSERT_OK_AND_ASSIGN(WriteHandle last, pool_->Reserve(Part(1, {0, 2, 0, 2})));
  ASSERT_THAT(last.claimed(), SizeIs(1));
  EXPECT_TRUE(last.Commit(FillClaimed(last, KeyOf(1))).value().sealed);
  EXPECT_TRUE(HoldsPattern(pool_->Pin(KeyOf(1)).value()[0]));
}

TEST_F(BlockPoolTest, ARepeatedPutClaimsNothingAndIsSealed) {
  SKETCHKV_ASSERT_OK(Put(*pool_, 1, std::nullopt));
  SKETCHKV_ASSERT_OK_AND_ASSIGN(WriteHandle again, pool_->Reserve(RequestFor(1, std::nullopt)));
  EXPECT_THAT(again.claimed(), IsEmpty());
  EXPECT_TRUE(again.Commit({}).value().sealed);
  EXPECT_EQ(pool_->GetStats().blocks, 1u);
}

TEST_F(BlockPoolTest, CellsInWritingAbortAnotherPutOfThemAlone) {
  SKETCHKV_ASSERT_OK_AND_ASSIGN(WriteHandle first, pool_->Reserve(Part(1, {0, 1, 0, 1})));
  EXPECT_THAT(pool_->Reserve(Part(1, {0, 2, 0, 2})),
              StatusIs(Code::kAborted, {"layer 0, head 0", HashOf(1).ToHex()}));
  SKETCHKV_ASSERT_OK_AND_ASSIGN(WriteHandle second, pool_->Reserve(Part(1, {1, 1, 0, 2})));
  EXPECT_THAT(second.claimed(), SizeIs(2));
  SKETCHKV_EXPECT_OK(first.Commit(FillClaimed(first, KeyOf(1))));
  SKETCHKV_EXPECT_OK(pool_->Reserve(Part(1, {0, 1, 0, 2})));
}

TEST_F(BlockPoolTest, AnUncommittedClaimLeavesNothing) {
  {
    SKETCHKV_ASSERT_OK_AND_ASSIGN(const WriteHandle handle, pool_->Reserve(RequestFor(2, 1)));
    EXPECT_EQ(pool_->GetStats().used_bytes, kSlot);
  }
  EXPECT_EQ(pool_->GetStats().blocks, 0u);
  EXPECT_EQ(pool_->GetStats().page_bytes, 0u);
  EXPECT_THAT(pool_->Delete(KeyOf(2)), StatusIs(Code::kNotFound));
  EXPECT_THAT(EventsFrom(1), IsEmpty());
  // Its parent and num_tokens are forgotten too.
  SKETCHKV_EXPECT_OK(Put(*pool_, 2, 7));
}

TEST_F(BlockPoolTest, AnUncommittedClaimGivesItsCellsBack) {
  SKETCHKV_ASSERT_OK(PutRequest(*pool_, Part(1, {0, 1, 0, 2})));
  { SKETCHKV_ASSERT_OK_AND_ASSIGN(const WriteHandle lost, pool_->Reserve(Part(1, {1, 1, 0, 2}))); }
  SKETCHKV_ASSERT_OK(PutRequest(*pool_, Part(1, {1, 1, 0, 2})));
  EXPECT_TRUE(HoldsPattern(pool_->Pin(KeyOf(1)).value()[0]));
}

TEST_F(BlockPoolTest, CommitWantsOneChecksumACellAndOnlyOnce) {
  SKETCHKV_ASSERT_OK_AND_ASSIGN(WriteHandle handle, pool_->Reserve(RequestFor(1, std::nullopt)));
  const std::vector<uint32_t> checksums = FillClaimed(handle, KeyOf(1));
  EXPECT_THAT(handle.Commit(std::span(checksums).first(3)),
              StatusIs(Code::kInvalidArgument, {"checksums: 3", "4"}));
  SKETCHKV_EXPECT_OK(handle.Commit(checksums));
  EXPECT_THAT(handle.Commit(checksums), StatusIs(Code::kFailedPrecondition));
}

TEST_F(BlockPoolTest, AssigningOverAHandleOrPinEndsIt) {
  SKETCHKV_ASSERT_OK_AND_ASSIGN(WriteHandle handle, pool_->Reserve(RequestFor(1, std::nullopt)));
  SKETCHKV_ASSERT_OK_AND_ASSIGN(handle, pool_->Reserve(RequestFor(2, std::nullopt)));
  EXPECT_EQ(pool_->GetStats().blocks, 1u);
  SKETCHKV_ASSERT_OK(handle.Commit(FillClaimed(handle, KeyOf(2))));
  { const WriteHandle ended = std::move(handle); }
  SKETCHKV_ASSERT_OK_AND_ASSIGN(ReadPins pins, pool_->Pin(KeyOf(2)));
  EXPECT_EQ(pool_->GetStats().pinned_bytes, kSlot);
  pins = ReadPins();
  EXPECT_EQ(pool_->GetStats().pinned_bytes, 0u);
}

TEST_F(BlockPoolTest, AnOrphanIsFoundOnlyWhenAllItsAncestorsAreSealed) {
  SKETCHKV_ASSERT_OK(Put(*pool_, 3, 2));
  SKETCHKV_ASSERT_OK(Put(*pool_, 1, std::nullopt));
  EXPECT_THAT(pool_->Pin(KeyOf(3)), StatusIs(Code::kNotFound, {HashOf(3).ToHex()}));
  EXPECT_THAT(pool_->PinChain(KeyOf(3)), StatusIs(Code::kNotFound, {HashOf(2).ToHex()}));
  SKETCHKV_ASSERT_OK(Put(*pool_, 2, 1));
  EXPECT_TRUE(Found(*pool_, 3));
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const ReadPins chain, pool_->PinChain(KeyOf(3)));
  ASSERT_EQ(chain.size(), 3u);
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_EQ(*chain[i].key, KeyOf(i + 1));
    EXPECT_TRUE(HoldsPattern(chain[i]));
  }
}

TEST_F(BlockPoolTest, TheFirstMissingAncestorIsTheOneNearestToTheRoot) {
  SKETCHKV_ASSERT_OK(PutRequest(*pool_, Part(1, {0, 1, 0, 1})));
  auto half = RequestFor(2, 1);
  half.range = {0, 1, 0, 1};
  SKETCHKV_ASSERT_OK(PutRequest(*pool_, half));
  SKETCHKV_ASSERT_OK(Put(*pool_, 3, 2));
  EXPECT_THAT(pool_->PinChain(KeyOf(3)),
              StatusIs(Code::kNotFound, {"block " + HashOf(1).ToHex()}));
  EXPECT_THAT(pool_->AcquireLease(KeyOf(9), std::chrono::seconds(1)),
              StatusIs(Code::kNotFound, {"block " + HashOf(9).ToHex()}));
}

TEST_F(BlockPoolTest, AShortBlockIsNeverAParent) {
  auto request = RequestFor(1, std::nullopt);
  request.num_tokens = kBlockTokens - 1;
  SKETCHKV_ASSERT_OK(PutRequest(*pool_, request));
  EXPECT_THAT(Put(*pool_, 2, 1), StatusIs(Code::kFailedPrecondition, {"15", "16"}));
  EXPECT_EQ(pool_->GetStats().blocks, 1u);
  // The other way round: who has children may not be short.
  SKETCHKV_ASSERT_OK(Put(*pool_, 11, 10));
  auto late = RequestFor(10, std::nullopt);
  late.num_tokens = 3;
  EXPECT_THAT(PutRequest(*pool_, late), StatusIs(Code::kFailedPrecondition, {"16", "3"}));
  SKETCHKV_EXPECT_OK(Put(*pool_, 10, std::nullopt));
}

TEST_F(BlockPoolTest, AnotherParentOrSizeOrShapeForAKnownBlockIsRefused) {
  SKETCHKV_ASSERT_OK(Put(*pool_, 1, 0));
  EXPECT_THAT(Put(*pool_, 1, std::nullopt),
              StatusIs(Code::kFailedPrecondition, {HashOf(0).ToHex(), "none"}));
  EXPECT_THAT(Put(*pool_, 1, 5),
              StatusIs(Code::kFailedPrecondition, {HashOf(0).ToHex(), HashOf(5).ToHex()}));
  auto request = RequestFor(1, 0);
  request.num_tokens = 7;
  EXPECT_THAT(PutRequest(*pool_, request),
              StatusIs(Code::kFailedPrecondition, {"num_tokens", "16", "7"}));
  EXPECT_THAT(Put(*pool_, 1, 0, 8192), StatusIs(Code::kFailedPrecondition, {"4096", "8192"}));
}

TEST_F(BlockPoolTest, AParentThatDescendsFromItsChildIsRefused) {
  SKETCHKV_ASSERT_OK(Put(*pool_, 2, 1));
  SKETCHKV_ASSERT_OK(Put(*pool_, 3, 2));
  EXPECT_THAT(Put(*pool_, 1, 3), StatusIs(Code::kFailedPrecondition, {"descendant"}));
  EXPECT_THAT(Put(*pool_, 1, 1), StatusIs(Code::kInvalidArgument, {"names itself"}));
  SKETCHKV_ASSERT_OK(Put(*pool_, 1, std::nullopt));
  EXPECT_TRUE(Found(*pool_, 3));
}

TEST_F(BlockPoolTest, BadRequestsNameTheFieldAndChangeNothing) {
  const auto expect = [&](auto&& change, std::vector<std::string> parts) {
    auto request = RequestFor(1, std::nullopt);
    change(request);
    EXPECT_THAT(pool_->Reserve(request), StatusIs(Code::kInvalidArgument, std::move(parts)));
  };
  expect([](auto& r) { r.num_tokens = 0; }, {"num_tokens", "0", "16"});
  expect([](auto& r) { r.num_tokens = 17; }, {"num_tokens", "17", "16"});
  expect([](auto& r) { r.range = {1, 2, 0, 1}; }, {"layers", "1 + 2", "2)"});
  expect([](auto& r) { r.range = {0, 2, 4294967295u, 2}; }, {"heads", "4294967295"});
  expect([](auto& r) { r.range.layer_count = 0; }, {"layers", "empty"});
  expect([](auto& r) { r.shape.slot_bytes = 4000; }, {"slot_bytes", "4000", "64"});
  expect([](auto& r) { r.shape.slot_bytes = 192; }, {"slot_bytes", "192", "256"});
  expect([](auto& r) { r.shape.num_heads = 70000; }, {"num_heads", "70000", "65535"});
  expect([](auto& r) { r.key.hash = BlockHash(); }, {"block_hash", "0 bytes"});
  EXPECT_EQ(pool_->GetStats().blocks, 0u);
}

TEST_F(BlockPoolTest, LookupCountsTheFoundPrefixWithoutAHole) {
  PutChain(1, 4);
  SKETCHKV_ASSERT_OK(Put(*pool_, 5, 4));  // 4 is missing
  const std::vector<BlockHash> chain = {HashOf(1), HashOf(2), HashOf(3), HashOf(4), HashOf(5)};
  EXPECT_EQ(pool_->LookupPrefix(0, {}, chain), 3u);
  EXPECT_EQ(pool_->LookupPrefix(1, {}, chain), 0u);  // another tenant
  EXPECT_EQ(pool_->LookupPrefix(0, {}, std::span(chain).subspan(1)), 0u);  // not from the root
  SKETCHKV_ASSERT_OK(Put(*pool_, 4, 3));
  EXPECT_EQ(pool_->LookupPrefix(0, {}, chain), 5u);
}

TEST_F(BlockPoolTest, PinAllTakesAllOrNone) {
  PutChain(1, 3);
  const std::vector<BlockKey> keys = {KeyOf(2), KeyOf(1), KeyOf(2)};
  {
    SKETCHKV_ASSERT_OK_AND_ASSIGN(const ReadPins pins, pool_->PinAll(keys));
    ASSERT_EQ(pins.size(), 3u);
    EXPECT_EQ(*pins[0].key, KeyOf(2));
    EXPECT_EQ(*pins[1].key, KeyOf(1));
    EXPECT_EQ(pool_->GetStats().pinned_bytes, 2 * kSlot);
  }
  const std::vector<BlockKey> with_missing = {KeyOf(1), KeyOf(8), KeyOf(9)};
  EXPECT_THAT(pool_->PinAll(with_missing), StatusIs(Code::kNotFound, {HashOf(8).ToHex()}));
  EXPECT_EQ(pool_->GetStats().pinned_bytes, 0u);
}

TEST_F(BlockPoolTest, DeleteHidesTheSubtreeAtOnceAndFreesAtTheLastUnpin) {
  PutChain(1, 5);
  SKETCHKV_ASSERT_OK(Put(*pool_, 20, 2));
  SKETCHKV_ASSERT_OK_AND_ASSIGN(ReadPins first, pool_->Pin(KeyOf(3)));
  SKETCHKV_ASSERT_OK_AND_ASSIGN(ReadPins second, pool_->Pin(KeyOf(3)));
  EXPECT_EQ(pool_->Delete(KeyOf(2)).value(), 4u);
  for (const uint64_t gone : {2, 3, 4, 20}) EXPECT_FALSE(Found(*pool_, gone));
  EXPECT_TRUE(Found(*pool_, 1));
  EXPECT_THAT(pool_->Delete(KeyOf(2)), StatusIs(Code::kNotFound, {HashOf(2).ToHex()}));
  EXPECT_EQ(pool_->GetStats().used_bytes, 2 * kSlot);
  // The same key again is a new block beside the one that is still read.
  SKETCHKV_ASSERT_OK(Put(*pool_, 3, std::nullopt));
  first = ReadPins();
  EXPECT_EQ(pool_->GetStats().used_bytes, 3 * kSlot);
  EXPECT_TRUE(HoldsPattern(second[0]));
  second = ReadPins();
  EXPECT_EQ(pool_->GetStats().used_bytes, 2 * kSlot);
  EXPECT_EQ(pool_->GetStats().deleted_total, 4u);
  EXPECT_TRUE(Found(*pool_, 3));
}

TEST_F(BlockPoolTest, ABlockDeletedWhileWrittenStaysDeleted) {
  SKETCHKV_ASSERT_OK(PutRequest(*pool_, Part(1, {0, 1, 0, 2})));
  {
    SKETCHKV_ASSERT_OK_AND_ASSIGN(WriteHandle handle, pool_->Reserve(Part(1, {1, 1, 0, 2})));
    EXPECT_EQ(pool_->Delete(KeyOf(1)).value(), 1u);
    const std::vector<uint32_t> checksums = FillClaimed(handle, KeyOf(1));  // the slot is there
    EXPECT_THAT(handle.Commit(checksums), StatusIs(Code::kNotFound, {HashOf(1).ToHex()}));
    EXPECT_EQ(pool_->GetStats().used_bytes, kSlot);
  }
  EXPECT_EQ(pool_->GetStats().used_bytes, 0u);
  EXPECT_FALSE(Found(*pool_, 1));
}

TEST_F(BlockPoolTest, ClearTakesOneModelWithItsOrphans) {
  PutChain(1, 4);
  SKETCHKV_ASSERT_OK(Put(*pool_, 11, 10));  // orphan
  SKETCHKV_ASSERT_OK(Put(*pool_, 12, 11));
  PutChain(1, 3, std::nullopt, kSlot, 1);
  EXPECT_EQ(pool_->Clear(0, KeyOf(0).fingerprint), 5u);
  EXPECT_EQ(pool_->GetStats().blocks, 2u);
  EXPECT_FALSE(Found(*pool_, 1));
  EXPECT_TRUE(Found(*pool_, 2, 1));
  EXPECT_EQ(pool_->Clear(0, KeyOf(0).fingerprint), 0u);
}

TEST_F(BlockPoolTest, DiscardHidesTheSubtreeAndCountsOneFailure) {
  PutChain(1, 4);
  pool_->Discard(KeyOf(2));
  pool_->Discard(KeyOf(2));
  EXPECT_FALSE(Found(*pool_, 2));
  EXPECT_FALSE(Found(*pool_, 3));
  EXPECT_EQ(pool_->GetStats().discarded_total, 1u);
}

TEST_F(BlockPoolTest, UnsealedBlocksExpireAfterTheirLastPart) {
  SKETCHKV_ASSERT_OK(PutRequest(*pool_, Part(1, {0, 1, 0, 1})));
  SKETCHKV_ASSERT_OK(Put(*pool_, 2, 1));
  SKETCHKV_ASSERT_OK(Put(*pool_, 3, std::nullopt));
  clock_.Advance(std::chrono::seconds(29));
  SKETCHKV_ASSERT_OK(PutRequest(*pool_, Part(1, {0, 1, 1, 1})));
  clock_.Advance(std::chrono::seconds(29));
  pool_->Expire();
  EXPECT_EQ(pool_->GetStats().blocks, 3u);
  clock_.Advance(std::chrono::seconds(1));
  {
    SKETCHKV_ASSERT_OK_AND_ASSIGN(const WriteHandle writing, pool_->Reserve(Part(1, {1, 1, 0, 1})));
    pool_->Expire();
    EXPECT_EQ(pool_->GetStats().blocks, 3u);
  }
  pool_->Expire();
  EXPECT_EQ(pool_->GetStats().blocks, 2u);
  EXPECT_EQ(pool_->GetStats().expired_total, 1u);
  EXPECT_TRUE(Found(*pool_, 3));
  SKETCHKV_ASSERT_OK(Put(*pool_, 1, std::nullopt));  // its child stayed, as an orphan
  EXPECT_TRUE(Found(*pool_, 2));
}

TEST_F(BlockPoolTest, EventsTellTheLifeOfBlocksInOrder) {
  SKETCHKV_ASSERT_OK(Put(*pool_, 2, 1));
  SKETCHKV_ASSERT_OK(PutRequest(*pool_, Part(1, {0, 1, 0, 2})));
  SKETCHKV_ASSERT_OK(PutRequest(*pool_, Part(1, {1, 1, 0, 2})));
  ASSERT_EQ(pool_->Delete(KeyOf(1)).value(), 2u);
  EXPECT_THAT(EventsFrom(1), ElementsAre(Pair(kStored, HashOf(2)), Pair(kStored, HashOf(1)),
                                         Pair(kSealed, HashOf(1)), Pair(kSealed, HashOf(2)),
                                         Pair(kDeleted, HashOf(2)), Pair(kDeleted, HashOf(1))));
  const std::vector<BlockEvent> events = pool_->events().Read(1, 10).events;
  EXPECT_EQ(events[0].parent, HashOf(1));
  EXPECT_EQ(events[1].parent, std::nullopt);
  EXPECT_EQ(events[4].parent, HashOf(1));
  for (size_t i = 0; i < events.size(); ++i) EXPECT_EQ(events[i].sequence, i + 1);
}

}  // namespace
}  // namespace sketchkv
