#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <deque>
#include <string>
#include <vector>

#include "service/pool/arena_tier.h"
#include "tests/testing/engine_fixture.h"
#include "tests/testing/fake_gpu.h"

namespace sketchkv {

inline constexpr KvLayout kLayout = {.num_layers = 2,
                                     .num_kv_heads = 2,
                                     .head_dim = 16,
                                     .value_dim = 24,
                                     .block_tokens = 64,
                                     .key_dtype = DType::kFp32,
                                     .value_dtype = DType::kFp32};

// An engine with a card that has room for some blocks, and one without a card that is given the
// same.
struct GpuMemoryFixture {
  explicit GpuMemoryFixture(size_t blocks_on_gpu = 4)
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

}  // namespace sketchkv
