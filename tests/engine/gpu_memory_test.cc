// Parts and attention whose bytes lie in a worker's memory on the card.

#include <gtest/gtest.h>

#include <cmath>
#include <deque>
#include <vector>

#include "service/pool/arena_tier.h"
#include "tests/testing/engine_fixture.h"
#include "tests/testing/fake_gpu.h"

namespace sketchkv {
namespace {

constexpr KvLayout kLayout = {.num_layers = 2,
                              .num_kv_heads = 2,
                              .head_dim = 16,
                              .value_dim = 24,
                              .block_tokens = 64,
                              .key_dtype = DType::kFp32,
                              .value_dtype = DType::kFp32};

// An engine with a card that has room for some blocks, and one without a card that is given the
// same.
struct Fixture {
  explicit Fixture(size_t blocks_on_gpu = 4)
      : model(*models.Register(0, "m", kLayout, {LayerProfileRequest{.profile = {.name = "qjl"}}})),
        gpu(blocks_on_gpu * ((model->shape.slot_bytes + 4095) / 4096 * 4096)),
        pool({.budget_bytes = size_t{16} << 20}, &clock,
             std::make_unique<ArenaTier>(gpu.TierMemory())),
        tier(&gpu, &pool, &models),
        engine(&models, &pool, &executor, &tier),
        host_pool({.budget_bytes = size_t{16} << 20}, &clock),
        host(&models, &host_pool, &executor) {}

  // The worker's memory: `part`'s payload, kept until the end.
  Engine::PutRequest OnGpu(uint64_t hash, const RawPart& part) {
    workers.push_back(part.payload);
    return {.model = model,
            .hash = TestHash(hash),
            .part = part.layout,
            .gpu_payload = Borrow(&workers.back())};
  }
  Engine::PutRequest OnHost(uint64_t hash, const RawPart& part) {
    return {.model = model,
            .hash = TestHash(hash),
            .part = part.layout,
            .payload = Bytes(part.payload)};
  }
  static GpuBytes Borrow(std::string* bytes) {
    return {.bytes = std::as_writable_bytes(std::span(*bytes)), .owner = nullptr};
  }
  // Both engines get block `hash`, ours from the card.
  void PutBoth(uint64_t hash, uint64_t parent = 0) {
    const RawPart part = RandomPart(*model, {}, kLayout.block_tokens, hash);
    Engine::PutRequest ours = OnGpu(hash, part), theirs = OnHost(hash, part);
    if (parent != 0) ours.parent = theirs.parent = TestHash(parent);
    SKETCHKV_ASSERT_OK_AND_ASSIGN(const auto result, engine.Put(0, ours));
    EXPECT_TRUE(result.sealed);
    EXPECT_FALSE(result.already_present);
    SKETCHKV_ASSERT_OK(host.Put(0, theirs));
  }
  void ExpectSameCells(uint64_t hash) {
    const Engine::GetRequest request{.model = model, .hash = TestHash(hash)};
    SKETCHKV_ASSERT_OK_AND_ASSIGN(const Part ours, GetPart(engine, request));
    SKETCHKV_ASSERT_OK_AND_ASSIGN(const Part theirs, GetPart(host, request));
    EXPECT_EQ(ours.payload, theirs.payload);
  }
  // A get of the block, decoded, into a worker's memory of `into` bytes.
  absl::Status GetToGpu(uint64_t hash, std::string* into) {
    CollectingSink sink;
    return engine
        .Get(0,
             {.model = model,
              .hash = TestHash(hash),
              .dtype = DType::kBf16,
              .raw_order = RawOrder::kHnd,
              .into = std::as_writable_bytes(std::span(*into)),
              .into_place = Place::kGpu},
             &sink)
        .status();
  }
  std::string Decoded(uint64_t hash) {
    const auto part = GetPart(host, {.model = model,
                                     .hash = TestHash(hash),
                                     .dtype = DType::kBf16,
                                     .raw_order = RawOrder::kHnd});
    return part.ok() ? part->payload.ToString() : "";
  }
  AttentionRequest Attention(uint64_t tip) {
    AttentionRequest request{.model = model, .queries_per_kv_head = 2};
    AttentionItem item{.tip = TestHash(tip), .layer = 1, .head_count = 2, .num_query_tokens = 3};
    item.options.softmax_scale = 0.25f;
    request.items = {item};
    queries.resize(3 * 2 * 2 * kLayout.head_dim);
    for (size_t i = 0; i < queries.size(); ++i) queries[i] = std::sin(0.7f * i);
    request.queries = queries;
    return request;
  }
  std::vector<float> Attend(const AttentionRequest& request) {
    std::vector<float> answer(AnswerFloats(request), std::nanf(""));
    EXPECT_THAT(engine.Attend(0, request, answer), IsOk());
    return answer;
  }
  void ExpectNothingStored() {
    EXPECT_EQ(pool.GetStats().blocks, 0);
    EXPECT_EQ(pool.GetStats().gpu_used_bytes, 0);
    EXPECT_EQ(pool.GetStats().pinned_bytes, 0);
  }

  FakeClock clock;
  ModelRegistry models{Isa::kScalar};
  std::shared_ptr<const Model> model;
  testing::FakeGpu gpu;
  BlockPool pool;
  GpuTier tier;
  ManualExecutor executor;
  Engine engine;
  BlockPool host_pool;
  Engine host;
  std::deque<std::string> workers;
  std::vector<float> queries;
};

TEST(GpuMemoryTest, APutFromTheCardStoresWhatOneFromTheHostStores) {
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

TEST(GpuMemoryTest, BlocksWithoutASlotOnTheCardAreStoredOnTheHost) {
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

TEST(GpuMemoryTest, PartsFromBothPlacesMakeOneBlock) {
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

TEST(GpuMemoryTest, AnOrphanOnTheCardAloneIsWrittenBack) {
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

TEST(GpuMemoryTest, ABlockThatIsPutAnewIsNotWrittenBackInPlaceOfTheOneThatWasDeleted) {
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

TEST(GpuMemoryTest, ModelsThatTheCardDoesNotTakeGoOverTheHost) {
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

TEST(GpuMemoryTest, APutThatIsNoLongerWantedStoresNothing) {
  Fixture f;
  Engine::PutRequest put = f.OnGpu(1, RandomPart(*f.model, {}, kLayout.block_tokens, 1));
  put.still_valid = [&] {
    EXPECT_EQ(f.gpu.encodes, 1) << "asked when all was read";
    return absl::DeadlineExceededError("late");
  };
  EXPECT_THAT(f.engine.Put(0, put), StatusIs(absl::StatusCode::kDeadlineExceeded, {"late"}));
  f.ExpectNothingStored();
}

TEST(GpuMemoryTest, BadRowsOnTheCardAreRefused) {
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

TEST(GpuMemoryTest, PutsThatGoTogetherAreEachStoredOrRefusedAsIfAlone) {
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

TEST(GpuMemoryTest, ACardThatFailsFailsAllPutsThatGoTogether) {
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

TEST(GpuMemoryTest, RowsOfTheHostThatTheCardTakesAreStoredAsTheHostStoresThem) {
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

TEST(GpuMemoryTest, WhatIsWrongWithRowsOfTheHostIsSaidAsByTheHost) {
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

TEST(GpuMemoryTest, RowsOfTheHostAreStoredThereIfTheCardFailsMeanwhile) {
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

TEST(GpuMemoryTest, WithoutACardItIsUnavailable) {
  Fixture f;
  Engine::PutRequest put = f.OnGpu(1, RandomPart(*f.model, {}, kLayout.block_tokens, 1));
  EXPECT_THAT(f.host.Put(0, put), StatusIs(absl::StatusCode::kUnavailable, {"no GPU"}));
  AttentionRequest request = f.Attention(1);
  request.queries_place = Place::kGpu;
  std::vector<float> answer(AnswerFloats(request));
  EXPECT_THAT(f.host.Attend(0, request, answer),
              StatusIs(absl::StatusCode::kUnavailable, {"no GPU"}));
  EXPECT_THAT(f.host.Score(0, request), StatusIs(absl::StatusCode::kUnavailable, {"no GPU"}));
  f.PutBoth(1);
  CollectingSink sink;
  std::string into(4096, ' ');
  EXPECT_THAT(f.host.Get(0,
                         {.model = f.model,
                          .hash = TestHash(1),
                          .dtype = DType::kBf16,
                          .into = std::as_writable_bytes(std::span(into)),
                          .into_place = Place::kGpu},
                         &sink),
              StatusIs(absl::StatusCode::kUnavailable, {"no GPU"}));
}

TEST(GpuMemoryTest, ACardThatFailsMeanwhileIsUnavailableAndNothingStaysPinned) {
  Fixture f;
  f.PutBoth(1);
  f.gpu.Break();
  EXPECT_THAT(f.engine.Put(0, f.OnGpu(2, RandomPart(*f.model, {}, kLayout.block_tokens, 2))),
              StatusIs(absl::StatusCode::kUnavailable));
  EXPECT_TRUE(f.tier.failed());
  EXPECT_THAT(f.engine.Put(0, f.OnGpu(2, RandomPart(*f.model, {}, kLayout.block_tokens, 2))),
              StatusIs(absl::StatusCode::kUnavailable, {"failed"}));
  std::string into(1 << 20, ' ');
  EXPECT_THAT(f.GetToGpu(1, &into), StatusIs(absl::StatusCode::kUnavailable, {"failed"}));
  // What was there alone is lost: a miss, no wrong answer.
  EXPECT_THAT(GetPart(f.engine, {.model = f.model, .hash = TestHash(1)}),
              StatusIs(absl::StatusCode::kNotFound));
  f.ExpectNothingStored();
}

TEST(GpuMemoryTest, AGetWritesToTheCardWhatWouldTravel) {
  Fixture f(1);
  f.PutBoth(1);
  f.PutBoth(2);  // on the host
  for (const uint64_t hash : {1, 2}) {
    const std::string want = f.Decoded(hash);
    std::string into(want.size() + 64, '\x5a');
    SKETCHKV_ASSERT_OK(f.GetToGpu(hash, &into));
    EXPECT_EQ(into.substr(0, want.size()), want);
    EXPECT_EQ(into[want.size()], '\x5a') << "nothing beyond it is written";
    into.resize(want.size() - 1);
    EXPECT_THAT(f.GetToGpu(hash, &into),
                StatusIs(absl::StatusCode::kInvalidArgument,
                         {"gpu_memory.length", std::to_string(want.size() - 1),
                          std::to_string(want.size())}));
  }
  EXPECT_EQ(f.gpu.decodes, 2);
  EXPECT_EQ(f.gpu.copies_down, 0);
}

TEST(GpuMemoryTest, DamageOnTheCardIsFoundAndTheBlockDropped) {
  Fixture f;
  f.PutBoth(1);
  {
    SKETCHKV_ASSERT_OK_AND_ASSIGN(
        const ReadPins pins,
        f.pool.Pin({.fingerprint = f.model->fingerprint, .hash = TestHash(1)}));
    pins[0].gpu[f.model->codec->cell_offset(1, 0)] ^= std::byte{4};
  }
  std::string into(1 << 20, ' ');
  EXPECT_THAT(f.GetToGpu(1, &into),
              StatusIs(absl::StatusCode::kDataLoss, {"layer 1", "head 0", "checksum"}));
  EXPECT_THAT(f.GetToGpu(1, &into), StatusIs(absl::StatusCode::kNotFound));
  EXPECT_EQ(f.pool.GetStats().discarded_total, 1);
}

TEST(GpuMemoryTest, AttentionOnTheCardAnswersAsOnTheHost) {
  Fixture f;
  f.PutBoth(1);
  f.PutBoth(2, 1);
  AttentionRequest request = f.Attention(2);
  const std::vector<float> want = f.Attend(request);
  request.queries_place = request.answer_place = Place::kGpu;
  EXPECT_EQ(f.Attend(request), want);
  EXPECT_EQ(f.gpu.attentions_in_place, 1);
  EXPECT_EQ(f.gpu.copies_up + f.gpu.copies_down, 0);
  // Either of the two alone goes over the host.
  request.answer_place = Place::kHost;
  EXPECT_EQ(f.Attend(request), want);
  EXPECT_EQ(f.gpu.copies_down, 1);
  request.answer_place = Place::kGpu;
  request.queries_place = Place::kHost;
  EXPECT_EQ(f.Attend(request), want);
  EXPECT_EQ(f.gpu.copies_up, 1);
  EXPECT_EQ(f.gpu.attentions_in_place, 1);
  // Scores come back to the host.
  const auto scores = f.engine.Score(0, f.Attention(2));
  request.queries_place = Place::kGpu;
  const auto on_gpu = f.engine.Score(0, request);
  SKETCHKV_ASSERT_OK(on_gpu);
  EXPECT_EQ((*on_gpu)[0].logits, (*scores)[0].logits);
}

TEST(GpuMemoryTest, HostAttendsBlocksOnTheCardAloneOnceThatDoesNotTakeTheModelAnyMore) {
  Fixture f;
  f.PutBoth(1);
  f.PutBoth(2, 1);
  ASSERT_EQ(f.pool.GetStats().stale_blocks, 2);
  f.gpu.takes = [](const Model&) { return false; };
  const AttentionRequest request = f.Attention(2);
  std::vector<float> theirs(AnswerFloats(request));
  SKETCHKV_ASSERT_OK(f.host.Attend(0, request, theirs));
  EXPECT_EQ(f.Attend(request), theirs);
  EXPECT_EQ(f.gpu.attentions, 0);
}

TEST(GpuMemoryTest, AttentionOverBlocksOfBothTiersGoesOverTheHost) {
  Fixture f(1);
  f.PutBoth(1);
  f.PutBoth(2, 1);  // on the host
  AttentionRequest request = f.Attention(2);
  const std::vector<float> want = f.Attend(request);
  request.queries_place = request.answer_place = Place::kGpu;
  EXPECT_EQ(f.Attend(request), want);
  EXPECT_EQ(f.gpu.attentions_in_place, 0);
}

TEST(GpuMemoryTest, BadQueriesOnTheCardAreRefused) {
  Fixture f(1);
  f.PutBoth(1);
  f.PutBoth(2, 1);
  for (const uint64_t tip : {1, 2}) {
    AttentionRequest request = f.Attention(tip);
    request.queries_place = request.answer_place = Place::kGpu;
    f.queries[5] = INFINITY;
    std::vector<float> answer(AnswerFloats(request), 7.0f);
    EXPECT_THAT(f.engine.Attend(0, request, answer),
                StatusIs(absl::StatusCode::kInvalidArgument, {"quer"}));
  }
  AttentionRequest request = f.Attention(1);
  request.queries_place = Place::kGpu;
  request.queries = request.queries.first(8);
  std::vector<float> answer(AnswerFloats(request));
  EXPECT_THAT(f.engine.Attend(0, request, answer),
              StatusIs(absl::StatusCode::kInvalidArgument, {"queries has 32", "768"}));
  EXPECT_FALSE(f.tier.failed());
}

TEST(GpuMemoryTest, AttentionIntoACardThatFailsIsUnavailable) {
  Fixture f;
  f.PutBoth(1);
  AttentionRequest request = f.Attention(1);
  request.queries_place = request.answer_place = Place::kGpu;
  std::vector<float> answer(AnswerFloats(request));
  f.gpu.Break();
  EXPECT_THAT(f.engine.Attend(0, request, answer), StatusIs(absl::StatusCode::kUnavailable));
  EXPECT_TRUE(f.tier.failed());
}

}  // namespace
}  // namespace sketchkv
