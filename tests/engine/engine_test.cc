#include "service/engine/engine.h"

#include <gtest/gtest.h>

#include "tests/testing/engine_fixture.h"

namespace sketchkv {
namespace {

KvLayout SmallLayout() {
  return {.num_layers = 3,
          .num_kv_heads = 2,
          .head_dim = 32,
          .value_dim = 24,
          .block_tokens = 16,
          .key_dtype = DType::kFp32,
          .value_dtype = DType::kFp32};
}

TEST(EngineTest, RawBlocksComeBackUnchangedInBothOrders) {
  EngineFixture f;
  const auto model = f.Register("m", SmallLayout(), "raw");
  const RawPart part = RandomPart(*model, {}, 16, 1, RawOrder::kHnd);
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const auto put, f.Put(model, 1, 0, part));
  EXPECT_TRUE(put.sealed);
  EXPECT_FALSE(put.already_present);
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const Part same, GetPart(f.engine, {.model = model,
                                                                    .hash = TestHash(1),
                                                                    .dtype = DType::kFp32,
                                                                    .raw_order = RawOrder::kHnd}));
  EXPECT_EQ(same.payload, part.payload);
  EXPECT_EQ(same.layout.checksum, part.layout.checksum);
  // Put again in the other order: the same cells, so nothing is new.
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const Part nhd, GetPart(f.engine, {.model = model,
                                                                   .hash = TestHash(1),
                                                                   .dtype = DType::kFp32,
                                                                   .raw_order = RawOrder::kNhd}));
  EXPECT_NE(nhd.payload, part.payload);
  EXPECT_EQ(nhd.payload.size(), part.payload.size());
  SKETCHKV_ASSERT_OK_AND_ASSIGN(
      const auto again,
      f.Put(model, 1, 0, {.layout = nhd.layout, .payload = nhd.payload.ToString()}));
  EXPECT_TRUE(again.already_present);
  EXPECT_TRUE(again.sealed);
}

TEST(EngineTest, EncodeGivesTheBytesThatAPutStoresAndDecodeTheWayBack) {
  EngineFixture f;
  for (const std::string profile : {"raw", "qjl", "qjl-paper", "qjl2p", "qjl3p", "qjl4p", "klt"}) {
    const auto model = f.Register(profile, SmallLayout(), profile);
    const RawPart part = RandomPart(*model, {}, 11, 2);
    SKETCHKV_ASSERT_OK(f.Put(model, 1, 0, part));
    SKETCHKV_ASSERT_OK_AND_ASSIGN(const Part stored,
                                  GetPart(f.engine, {.model = model, .hash = TestHash(1)}));
    SKETCHKV_ASSERT_OK_AND_ASSIGN(const Part encoded,
                                  EncodePart(f.engine, *model, part.layout, Bytes(part.payload)));
    EXPECT_EQ(stored.payload, encoded.payload) << profile;
    EXPECT_EQ(stored.layout.num_tokens, 11);

    SKETCHKV_ASSERT_OK_AND_ASSIGN(
        const Part fetched,
        GetPart(f.engine, {.model = model, .hash = TestHash(1), .dtype = DType::kBf16}));
    SKETCHKV_ASSERT_OK_AND_ASSIGN(const Part decoded,
                                  DecodePart(f.engine, *model, encoded.layout, encoded.payload,
                                             DType::kBf16, RawOrder::kNhd));
    EXPECT_EQ(fetched.payload, decoded.payload) << profile;

    // Encoded cells may be put under another hash, and are the same there.
    Engine::PutRequest put{.model = model,
                           .hash = TestHash(2),
                           .part = encoded.layout,
                           .encoded = true,
                           .payload = encoded.payload};
    SKETCHKV_ASSERT_OK(f.engine.Put(0, put));
    SKETCHKV_ASSERT_OK_AND_ASSIGN(const Part copy,
                                  GetPart(f.engine, {.model = model, .hash = TestHash(2)}));
    EXPECT_EQ(copy.payload, encoded.payload) << profile;
  }
}

TEST(EngineTest, PartsOfABlockMeetAndRangesAreReadBack) {
  EngineFixture f;
  const auto model = f.Register("m", SmallLayout(), "raw");
  for (uint32_t layer = 0; layer < 3; ++layer) {
    for (uint32_t head = 0; head < 2; ++head) {
      const CellRange range{layer, 1, head, 1};
      SKETCHKV_ASSERT_OK_AND_ASSIGN(
          const auto put, f.Put(model, 5, 0, RandomPart(*model, range, 16, layer * 10 + head)));
      EXPECT_EQ(put.sealed, layer == 2 && head == 1);
      const bool readable =
          GetPart(f.engine, {.model = model, .hash = TestHash(5), .range = range}).ok();
      EXPECT_EQ(readable, put.sealed) << "only sealed blocks are read";
    }
  }
  const CellRange one{1, 1, 1, 1};
  SKETCHKV_ASSERT_OK_AND_ASSIGN(
      const Part part,
      GetPart(f.engine,
              {.model = model, .hash = TestHash(5), .range = one, .dtype = DType::kFp32}));
  EXPECT_EQ(part.payload, RandomPart(*model, one, 16, 11).payload);
}

TEST(EngineTest, BadPutsSayWhyAndLeaveNothing) {
  EngineFixture f;
  const auto model = f.Register("m", SmallLayout(), "qjl");
  RawPart part = RandomPart(*model, {}, 16, 3);
  const auto expect_nothing = [&] {
    EXPECT_EQ(f.pool.GetStats().blocks, 0);
    EXPECT_EQ(f.pool.GetStats().used_bytes, 0);
  };
  RawPart flipped = part;
  flipped.payload[100] ^= 1;
  EXPECT_THAT(f.Put(model, 1, 0, flipped), StatusIs(absl::StatusCode::kDataLoss, {"0x"}));
  expect_nothing();
  RawPart truncated = part;
  truncated.payload.pop_back();
  EXPECT_THAT(f.Put(model, 1, 0, truncated),
              StatusIs(absl::StatusCode::kInvalidArgument, {std::to_string(part.payload.size() - 1),
                                                            std::to_string(part.payload.size())}));
  expect_nothing();
  // Layer 1, value plane, head 1, token 2, channel 3.
  RawPart poisoned = part;
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const size_t layer_bytes = 16 * 2 * (32 + 24) * 4;
  const size_t at = layer_bytes + 16 * 2 * 32 * 4 + (2 * 2 + 1) * 24 * 4 + 3 * 4;
  std::memcpy(poisoned.payload.data() + at, &nan, sizeof(nan));
  poisoned.layout.checksum = PayloadChecksum(Bytes(poisoned.payload));
  EXPECT_THAT(f.Put(model, 1, 0, poisoned),
              StatusIs(absl::StatusCode::kInvalidArgument, {"layer 1, head 1", "token 2"}));
  expect_nothing();
  EXPECT_THAT(EncodePart(f.engine, *model, poisoned.layout, Bytes(poisoned.payload)),
              StatusIs(absl::StatusCode::kInvalidArgument, {"layer 1, head 1", "token 2"}));
  // Damage on the way explains a NaN, not the other way round.
  poisoned.layout.checksum ^= 1;
  EXPECT_THAT(f.Put(model, 1, 0, poisoned), StatusIs(absl::StatusCode::kDataLoss, {"checksum"}));
  expect_nothing();
}

TEST(EngineTest, DamagedEncodedCellsAreRefused) {
  EngineFixture f;
  const auto model = f.Register("m", SmallLayout(), "qjl");
  const RawPart part = RandomPart(*model, {}, 16, 3);
  SKETCHKV_ASSERT_OK_AND_ASSIGN(Part encoded,
                                EncodePart(f.engine, *model, part.layout, Bytes(part.payload)));
  std::string damaged = encoded.payload.ToString();
  damaged[0] = damaged[1] = '\xff';  // the first scale of the first cell
  encoded.layout.checksum = PayloadChecksum(Bytes(damaged));
  const Engine::PutRequest put{.model = model,
                               .hash = TestHash(2),
                               .part = encoded.layout,
                               .encoded = true,
                               .payload = Bytes(damaged)};
  EXPECT_THAT(f.engine.Put(0, put),
              StatusIs(absl::StatusCode::kInvalidArgument, {"layer 0, head 0"}));
  EXPECT_EQ(f.pool.GetStats().blocks, 0);
}

TEST(EngineTest, AFlippedStoredBitIsAMissAndACounterNeverAnAnswer) {
  EngineFixture f;
  const auto model = f.Register("m", SmallLayout(), "qjl");
  SKETCHKV_ASSERT_OK(f.Put(model, 1, 0, RandomPart(*model, {}, 16, 3)));
  SKETCHKV_ASSERT_OK(f.Put(model, 2, 1, RandomPart(*model, {}, 16, 4)));
  {
    SKETCHKV_ASSERT_OK_AND_ASSIGN(
        const ReadPins pins,
        f.pool.Pin({.tenant = 0, .fingerprint = model->fingerprint, .hash = TestHash(1)}));
    const size_t at = model->codec->cell_offset(2, 1) + 70;
    const_cast<std::byte*>(pins[0].bytes.data())[at] ^= std::byte{4};
  }
  // Cells that are whole are still served.
  SKETCHKV_EXPECT_OK(GetPart(
      f.engine,
      {.model = model, .hash = TestHash(1), .range = {.layer_begin = 0, .layer_count = 2}}));
  EXPECT_THAT(GetPart(f.engine, {.model = model, .hash = TestHash(1)}),
              StatusIs(absl::StatusCode::kDataLoss, {"layer 2, head 1"}));
  EXPECT_THAT(GetPart(f.engine, {.model = model, .hash = TestHash(1)}),
              StatusIs(absl::StatusCode::kNotFound));
  EXPECT_EQ(f.pool.GetStats().discarded_total, 1);
  const std::vector<BlockHash> chain = {TestHash(1), TestHash(2)};
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const auto found, f.engine.Lookup(0, *model, chain, {}));
  EXPECT_EQ(found.num_blocks, 0);
}

TEST(EngineTest, ScrubFindsADamagedBlockWithoutAnybodyReadingIt) {
  EngineFixture f;
  const auto model = f.Register("m", SmallLayout(), "qjl");
  for (uint64_t hash = 1; hash <= 5; ++hash) {
    SKETCHKV_ASSERT_OK(f.Put(model, hash, 0, RandomPart(*model, {}, 16, hash)));
  }
  uint64_t cursor = 0;
  EXPECT_EQ(f.engine.Scrub(&cursor, 100), 5);
  EXPECT_EQ(cursor, 0);
  EXPECT_EQ(f.pool.GetStats().discarded_total, 0);
  {
    SKETCHKV_ASSERT_OK_AND_ASSIGN(
        const ReadPins pins,
        f.pool.Pin({.tenant = 0, .fingerprint = model->fingerprint, .hash = TestHash(4)}));
    const_cast<std::byte*>(pins[0].bytes.data())[200] ^= std::byte{1};
  }
  // In steps of two blocks the whole is seen once and the cursor comes round.
  size_t verified = 0;
  do {
    verified += f.engine.Scrub(&cursor, 2);
  } while (cursor != 0);
  EXPECT_EQ(verified, 5);
  EXPECT_EQ(f.pool.GetStats().discarded_total, 1);
  EXPECT_EQ(f.pool.GetStats().sealed_blocks, 4);
  EXPECT_THAT(GetPart(f.engine, {.model = model, .hash = TestHash(4)}),
              StatusIs(absl::StatusCode::kNotFound));
}

TEST(EngineTest, LookupCountsTokensAndLeases) {
  EngineFixture f;
  const auto model = f.Register("m", SmallLayout(), "qjl");
  SKETCHKV_ASSERT_OK(f.Put(model, 1, 0, RandomPart(*model, {}, 16, 3)));
  SKETCHKV_ASSERT_OK(f.Put(model, 2, 1, RandomPart(*model, {}, 5, 4)));
  const std::vector<BlockHash> chain = {TestHash(1), TestHash(2), TestHash(3)};
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const auto found,
                                f.engine.Lookup(0, *model, chain, std::chrono::seconds(5)));
  EXPECT_EQ(found.num_blocks, 2);
  EXPECT_EQ(found.num_tokens, 21);
  ASSERT_TRUE(found.lease.has_value());
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const auto other_tenant, f.engine.Lookup(9, *model, chain, {}));
  EXPECT_EQ(other_tenant.num_blocks, 0);
  EXPECT_EQ(f.engine.Delete(0, *model, chain), 2);
  EXPECT_EQ(f.engine.Delete(0, *model, chain), 0);
}

TEST(EngineTest, BeyondWhatLeasesMayPinLookupAnswersWithoutOne) {
  constexpr size_t kBudget = size_t{1200} << 10;
  EngineFixture f(kBudget);
  KvLayout layout = SmallLayout();
  layout.block_tokens = 1024;
  layout.num_kv_heads = 8;
  const auto model = f.Register("m", layout, "qjl");
  ASSERT_GT(model->shape.slot_bytes, kBudget / 5 * 2) << "two blocks are over 80 %";
  SKETCHKV_ASSERT_OK(f.Put(model, 1, 0, RandomPart(*model, {}, 1024, 1)));
  SKETCHKV_ASSERT_OK(f.Put(model, 2, 1, RandomPart(*model, {}, 1024, 2)));
  const std::vector<BlockHash> chain = {TestHash(1), TestHash(2)};
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const auto found,
                                f.engine.Lookup(0, *model, chain, std::chrono::seconds(5)));
  EXPECT_EQ(found.num_blocks, 2);
  EXPECT_FALSE(found.lease.has_value());
  EXPECT_EQ(f.pool.GetStats().leased_bytes, 0);
}

TEST(EngineTest, TheFirstWriterOfACellWins) {
  EngineFixture f;
  const auto model = f.Register("m", SmallLayout(), "raw");
  const RawPart first = RandomPart(*model, {}, 16, 1), second = RandomPart(*model, {}, 16, 2);
  SKETCHKV_ASSERT_OK(f.Put(model, 1, 0, first));
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const auto put, f.Put(model, 1, 0, second));
  EXPECT_TRUE(put.already_present);
  SKETCHKV_ASSERT_OK_AND_ASSIGN(
      const Part part,
      GetPart(f.engine, {.model = model, .hash = TestHash(1), .dtype = DType::kFp32}));
  EXPECT_EQ(part.payload, first.payload);
}

TEST(EngineTest, UnregisterDropsTheModelsBlocksOnly) {
  EngineFixture f;
  const auto a = f.Register("a", SmallLayout(), "qjl");
  const auto b = f.Register("b", SmallLayout(), "qjl");
  SKETCHKV_ASSERT_OK(f.Put(a, 1, 0, RandomPart(*a, {}, 16, 3)));
  SKETCHKV_ASSERT_OK(f.Put(b, 1, 0, RandomPart(*b, {}, 16, 3)));
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const uint64_t dropped, f.engine.Unregister(0, "a"));
  EXPECT_EQ(dropped, 1);
  SKETCHKV_EXPECT_OK(GetPart(f.engine, {.model = b, .hash = TestHash(1)}));
  EXPECT_THAT(GetPart(f.engine, {.model = a, .hash = TestHash(1)}),
              StatusIs(absl::StatusCode::kNotFound));
}

TEST(EngineTest, OutputTypesASketchCannotGiveAreRefused) {
  EngineFixture f;
  const auto model = f.Register("m", SmallLayout(), "qjl");
  SKETCHKV_ASSERT_OK(f.Put(model, 1, 0, RandomPart(*model, {}, 16, 3)));
  EXPECT_THAT(GetPart(f.engine, {.model = model, .hash = TestHash(1), .dtype = DType::kFp8E4M3}),
              StatusIs(absl::StatusCode::kInvalidArgument, {"format.dtype is 4", "qjl"}));
}

}  // namespace
}  // namespace sketchkv
