// Puts that the card encodes: of rows in a worker's memory there, and of rows on the host.

#include <cmath>
#include <vector>

#include "tests/engine/gpu_memory_fixture.h"

namespace sketchkv {
namespace {

using Fixture = GpuMemoryFixture;

TEST(GpuPutTest, APutFromTheCardStoresWhatOneFromTheHostStores) {
  Fixture f;
  f.PutBoth(1);
  EXPECT_EQ(f.gpu.encodes, 1);
  EXPECT_EQ(f.gpu.copies_up + f.gpu.copies_down, 0) << "nothing goes over the host";
  EXPECT_EQ(f.pool.GetStats().stale_blocks, 1);
  f.ExpectSameCells(1);
  EXPECT_EQ(f.pool.GetStats().stale_blocks, 0) << "who reads on the host has it written back";
  SKETCHKV_ASSERT_OK_AND_ASSIGN(
      const auto again,
      f.engine.Put(0, f.OnGpu(1, RandomPart(*f.model, {}, kLayout.block_tokens, 1))));
  EXPECT_TRUE(again.already_present);
  EXPECT_EQ(f.gpu.encodes, 1);
}

TEST(GpuPutTest, BlocksWithoutASlotOnTheCardAreStoredOnTheHost) {
  Fixture f(1);
  {
    f.PutBoth(1);
    // What is there alone stays there.
    for (uint64_t hash = 2; hash <= 4; ++hash) f.PutBoth(hash);
  }
  EXPECT_EQ(f.gpu.encodes, 4);
  EXPECT_EQ(f.pool.GetStats().gpu_blocks, 1);
  EXPECT_EQ(f.pool.GetStats().stale_blocks, 1);
  EXPECT_EQ(f.pool.GetStats().gpu_fallback_total, 3);
  for (uint64_t hash = 1; hash <= 4; ++hash) f.ExpectSameCells(hash);
}

TEST(GpuPutTest, PartsFromBothPlacesMakeOneBlock) {
  Fixture f;
  const RawPart whole = RandomPart(*f.model, {}, kLayout.block_tokens, 1);
  SKETCHKV_ASSERT_OK(f.host.Put(0, f.OnHost(1, whole)));
  const size_t layer_bytes = whole.payload.size() / 2;
  for (uint32_t layer = 0; layer < 2; ++layer) {
    RawPart part = whole;
    part.layout.range = {.layer_begin = layer, .layer_count = 1};
    part.payload = whole.payload.substr(layer * layer_bytes, layer_bytes);
    part.layout.checksum = PayloadChecksum(Bytes(part.payload));
    SKETCHKV_ASSERT_OK_AND_ASSIGN(
        const auto put, f.engine.Put(0, layer == 0 ? f.OnGpu(1, part) : f.OnHost(1, part)));
    EXPECT_EQ(put.sealed, layer == 1);
  }
  f.ExpectSameCells(1);
}

TEST(GpuPutTest, AnOrphanOnTheCardAloneIsWrittenBack) {
  Fixture f;
  Engine::PutRequest request = f.OnGpu(2, RandomPart(*f.model, {}, kLayout.block_tokens, 2));
  request.parent = TestHash(1);
  SKETCHKV_ASSERT_OK(f.engine.Put(0, request));
  f.tier.Maintain();
  EXPECT_EQ(f.pool.GetStats().stale_blocks, 0);
  f.PutBoth(1);
  SKETCHKV_ASSERT_OK(f.host.Put(0, f.OnHost(2, RandomPart(*f.model, {}, kLayout.block_tokens, 2))));
  f.ExpectSameCells(2);
}

TEST(GpuPutTest, ABlockThatIsPutAnewIsNotWrittenBackInPlaceOfTheOneThatWasDeleted) {
  Fixture f;
  f.PutBoth(1);
  const BlockKey key{.fingerprint = f.model->fingerprint, .hash = TestHash(1)};
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const ReadPins deleted, f.pool.Pin(key));
  ASSERT_EQ(f.engine.Delete(0, *f.model, std::vector<BlockHash>{TestHash(1)}), 1);
  SKETCHKV_ASSERT_OK(
      f.engine.Put(0, f.OnGpu(1, RandomPart(*f.model, {}, kLayout.block_tokens, 1))));
  EXPECT_THAT(f.tier.WriteBack(deleted, 0), StatusIs(absl::StatusCode::kNotFound));
  EXPECT_TRUE(f.pool.Pin(key).value()[0].host_stale);
  f.ExpectSameCells(1);
}

TEST(GpuPutTest, ModelsThatTheCardDoesNotTakeGoOverTheHost) {
  Fixture f;
  f.gpu.takes = [](const Model&) { return false; };
  EXPECT_FALSE(f.engine.CodesOnGpu(f.model));
  f.PutBoth(1);
  EXPECT_EQ(f.gpu.encodes, 0);
  EXPECT_EQ(f.pool.GetStats().gpu_blocks, 0);
  f.ExpectSameCells(1);
  std::string into(f.Decoded(1).size(), '\x5a');
  SKETCHKV_ASSERT_OK(f.GetToGpu(1, &into));
  EXPECT_EQ(into, f.Decoded(1));
  EXPECT_EQ(f.gpu.decodes, 0);
}

TEST(GpuPutTest, APutThatIsNoLongerWantedStoresNothing) {
  Fixture f;
  Engine::PutRequest put = f.OnGpu(1, RandomPart(*f.model, {}, kLayout.block_tokens, 1));
  put.still_valid = [&] {
    EXPECT_EQ(f.gpu.encodes, 1) << "asked when all was read";
    return absl::DeadlineExceededError("late");
  };
  EXPECT_THAT(f.engine.Put(0, put), StatusIs(absl::StatusCode::kDeadlineExceeded, {"late"}));
  f.ExpectNothingStored();
}

TEST(GpuPutTest, BadRowsOnTheCardAreRefused) {
  Fixture f;
  RawPart part = RandomPart(*f.model, {}, kLayout.block_tokens, 1);
  const float nan = std::nanf("");
  std::memcpy(part.payload.data() + part.payload.size() / 2, &nan, sizeof(nan));
  EXPECT_THAT(f.engine.Put(0, f.OnGpu(1, part)),
              StatusIs(absl::StatusCode::kInvalidArgument, {"layer 1", "head 0"}));
  f.ExpectNothingStored();
  part = RandomPart(*f.model, {}, kLayout.block_tokens, 1);
  part.payload.resize(part.payload.size() - 16);
  EXPECT_THAT(f.engine.Put(0, f.OnGpu(1, part)),
              StatusIs(absl::StatusCode::kInvalidArgument, {std::to_string(part.payload.size())}));
}

TEST(GpuPutTest, PutsThatGoTogetherAreEachStoredOrRefusedAsIfAlone) {
  Fixture f(/*blocks_on_gpu=*/4);
  f.PutBoth(1);
  const auto part = [&](uint64_t hash) {
    return RandomPart(*f.model, {}, kLayout.block_tokens, hash);
  };
  RawPart bad = part(3), cut = part(4);
  const float nan = std::nanf("");
  std::memcpy(bad.payload.data(), &nan, sizeof(nan));
  cut.payload.resize(cut.payload.size() - 16);
  std::vector<Engine::PutRequest> puts = {
      f.OnGpu(1, part(1)), f.OnGpu(2, part(2)), f.OnGpu(3, bad),    f.OnGpu(4, cut),
      f.OnGpu(5, part(5)), f.OnGpu(6, part(6)), f.OnGpu(6, part(6))};
  puts[4].still_valid = [] { return absl::CancelledError("gone"); };
  std::vector<const Engine::PutRequest*> requests;
  for (const Engine::PutRequest& put : puts) requests.push_back(&put);
  const auto results = f.engine.PutFromGpu(0, requests);
  ASSERT_EQ(results.size(), puts.size());
  EXPECT_EQ(f.gpu.encodes, 2) << "one for all";
  SKETCHKV_ASSERT_OK(results[0]);
  EXPECT_TRUE(results[0]->already_present);
  SKETCHKV_ASSERT_OK(results[1]);
  EXPECT_TRUE(results[1]->sealed);
  EXPECT_THAT(results[2], StatusIs(absl::StatusCode::kInvalidArgument,
                                   {"layer 0, head 0: keys: token 0 channel 0"}));
  EXPECT_THAT(results[3],
              StatusIs(absl::StatusCode::kInvalidArgument, {std::to_string(cut.payload.size())}));
  EXPECT_THAT(results[4], StatusIs(absl::StatusCode::kCancelled, {"gone"}));
  SKETCHKV_ASSERT_OK(results[5]);
  EXPECT_THAT(results[6], StatusIs(absl::StatusCode::kAborted, {"try again"}));
  EXPECT_EQ(f.pool.GetStats().blocks, 3);
  EXPECT_EQ(f.pool.GetStats().pinned_bytes, 0);
  for (const uint64_t hash : {2, 6}) {
    SKETCHKV_ASSERT_OK(f.host.Put(0, f.OnHost(hash, part(hash))));
    f.ExpectSameCells(hash);
  }
}

TEST(GpuPutTest, ACardThatFailsFailsAllPutsThatGoTogether) {
  Fixture f;
  const RawPart part = RandomPart(*f.model, {}, kLayout.block_tokens, 1);
  const Engine::PutRequest puts[] = {f.OnGpu(1, part), f.OnGpu(2, part)};
  const Engine::PutRequest* const requests[] = {&puts[0], &puts[1]};
  f.gpu.on_encode = [&] { f.gpu.Break(); };
  for (const auto& result : f.engine.PutFromGpu(0, requests)) {
    EXPECT_THAT(result, StatusIs(absl::StatusCode::kUnavailable, {"broken"}));
  }
  f.ExpectNothingStored();
}

TEST(GpuPutTest, RowsOfTheHostThatTheCardTakesAreStoredAsTheHostStoresThem) {
  Fixture f;
  f.gpu.takes_host_rows = true;
  const RawPart part = RandomPart(*f.model, {}, kLayout.block_tokens, 1);
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const auto put, f.engine.Put(0, f.OnHost(1, part)));
  EXPECT_TRUE(put.sealed);
  EXPECT_EQ(f.gpu.host_encodes, 1);
  EXPECT_EQ(f.gpu.copies_up, 0);
  EXPECT_EQ(f.pool.GetStats().stale_blocks, 1);
  SKETCHKV_ASSERT_OK(f.host.Put(0, f.OnHost(1, part)));
  f.ExpectSameCells(1);
  // Neither cells, which need no encoding, nor what has no place on the card.
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const Part cells,
                                GetPart(f.host, {.model = f.model, .hash = TestHash(1)}));
  SKETCHKV_ASSERT_OK(f.engine.Put(0, {.model = f.model,
                                      .hash = TestHash(2),
                                      .part = cells.layout,
                                      .encoded = true,
                                      .payload = cells.payload}));
  Fixture full(/*blocks_on_gpu=*/0);
  full.gpu.takes_host_rows = true;
  SKETCHKV_ASSERT_OK(full.engine.Put(0, full.OnHost(1, part)));
  EXPECT_EQ(f.gpu.host_encodes + full.gpu.host_encodes, 1);
}

TEST(GpuPutTest, WhatIsWrongWithRowsOfTheHostIsSaidAsByTheHost) {
  Fixture f;
  f.gpu.takes_host_rows = true;
  RawPart part = RandomPart(*f.model, {}, kLayout.block_tokens, 1);
  const float nan = std::nanf("");
  std::memcpy(part.payload.data() + part.payload.size() - sizeof(nan), &nan, sizeof(nan));
  const auto expect_same = [&](const Engine::PutRequest& put) {
    const absl::Status want = f.host.Put(0, put).status();
    EXPECT_FALSE(want.ok());
    EXPECT_EQ(f.engine.Put(0, put).status(), want);
    f.ExpectNothingStored();
  };
  expect_same(f.OnHost(1, part));  // other bytes than were sent
  part.layout.checksum = PayloadChecksum(Bytes(part.payload));
  expect_same(f.OnHost(1, part));
  part = RandomPart(*f.model, {}, kLayout.block_tokens, 1);
  Engine::PutRequest unwanted = f.OnHost(1, part);
  unwanted.still_valid = [] { return absl::CancelledError("gone"); };
  expect_same(unwanted);
  EXPECT_EQ(f.gpu.host_encodes, 3);
}

TEST(GpuPutTest, RowsOfTheHostAreStoredThereIfTheCardFailsMeanwhile) {
  const auto expect_stored = [](Fixture* f) {
    const RawPart part = RandomPart(*f->model, {}, kLayout.block_tokens, 1);
    SKETCHKV_ASSERT_OK(f->engine.Put(0, f->OnHost(1, part)));
    SKETCHKV_ASSERT_OK(f->host.Put(0, f->OnHost(1, part)));
    EXPECT_TRUE(f->tier.failed());
    EXPECT_EQ(f->pool.GetStats().gpu_blocks, 0);
    f->ExpectSameCells(1);
  };
  Fixture f, late;
  f.gpu.takes_host_rows = late.gpu.takes_host_rows = true;
  f.gpu.on_encode = [&] { f.gpu.Break(); };
  expect_stored(&f);
  // Encoded there, but lost before it is stored.
  late.gpu.on_encode = [&] { late.tier.Fail(absl::UnavailableError("lost")); };
  expect_stored(&late);
}

}  // namespace
}  // namespace sketchkv
