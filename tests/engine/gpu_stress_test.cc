// Many threads on an engine with a card that is too small, and that may fail.

#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <random>
#include <thread>
#include <vector>

#include "service/pool/arena_tier.h"
#include "tests/testing/engine_fixture.h"
#include "tests/testing/fake_gpu.h"

namespace sketchkv {
namespace {

constexpr KvLayout kLayout = {.num_layers = 2,
                              .num_kv_heads = 2,
                              .head_dim = 16,
                              .value_dim = 16,
                              .block_tokens = 16,
                              .key_dtype = DType::kFp32,
                              .value_dtype = DType::kFp32};
constexpr size_t kSlotsOnGpu = 7;
constexpr uint64_t kDepth = 4, kBlocks = 4 * kDepth;  // four chains
constexpr int kSteps = 10000;

// Puts from host and card, gets, attention and deletes of blocks whose bytes follow from their
// number. Whatever is answered must be what an engine answers that has them all and no card.
class GpuStressTest : public ::testing::TestWithParam<bool> {
 protected:
  GpuStressTest()
      : model_(
            *models_.Register(0, "m", kLayout, {LayerProfileRequest{.profile = {.name = "qjl"}}})),
        gpu_(kSlotsOnGpu * ((model_->shape.slot_bytes + 4095) / 4096 * 4096)),
        pool_({.budget_bytes = size_t{1} << 20, .gpu_promote_idle = std::chrono::milliseconds(20)},
              &clock_, std::make_unique<ArenaTier>(gpu_.TierMemory())),
        tier_(&gpu_, &pool_, &models_),
        engine_(&models_, &pool_, &executor_, &tier_),
        host_pool_({.budget_bytes = size_t{16} << 20}, &clock_),
        host_(&models_, &host_pool_, &executor_) {
    gpu_.takes = [this](const Model&) { return takes_.load(); };
    for (size_t i = 0; i < 4 * kLayout.head_dim; ++i) queries_.push_back(std::sin(0.7f * i));
    for (uint64_t number = 1; number <= kBlocks; ++number) {
      parts_.push_back(RandomPart(*model_, {}, kLayout.block_tokens, number));
      EXPECT_THAT(host_.Put(0, Request(number, /*on_gpu=*/false)), IsOk());
      cells_.push_back(GetPart(host_, {.model = model_, .hash = TestHash(number)})->payload);
      scores_.push_back((*host_.Score(0, Query(number)))[0].logits);
    }
  }

  Engine::PutRequest Request(uint64_t number, bool on_gpu) {
    RawPart& part = parts_[number - 1];
    Engine::PutRequest request{.model = model_, .hash = TestHash(number), .part = part.layout};
    if (number % kDepth != 1) request.parent = TestHash(number - 1);
    if (on_gpu) {
      request.gpu_payload =
          GpuBytes{.bytes = std::as_writable_bytes(std::span(part.payload)), .owner = nullptr};
    } else {
      request.payload = Bytes(part.payload);
    }
    return request;
  }
  AttentionRequest Query(uint64_t tip) {
    AttentionRequest request{.model = model_, .queries_per_kv_head = 2};
    AttentionItem item{.tip = TestHash(tip), .layer = 1, .head_count = 2, .num_query_tokens = 1};
    item.options.softmax_scale = 0.25f;
    request.items = {item};
    request.queries = queries_;
    return request;
  }

  void Step(std::mt19937& random) {
    const uint64_t number = 1 + random() % kBlocks;
    switch (random() % 8) {
      case 0:
      case 1:
      case 2:
        (void)engine_.Put(0, Request(number, random() % 2 == 0));
        return;
      case 3:
        if (random() % 4 == 0)
          (void)engine_.Delete(0, *model_, std::vector<BlockHash>{TestHash(number)});
        return;
      case 4:
      case 5: {
        const auto part = GetPart(engine_, {.model = model_, .hash = TestHash(number)});
        if (part.ok()) {
          EXPECT_EQ(part->payload, cells_[number - 1]) << number;
        } else {
          EXPECT_THAT(part.status(), StatusIs(absl::StatusCode::kNotFound));
        }
        return;
      }
      default: {
        const auto scores = engine_.Score(0, Query(number));
        if (scores.ok()) {
          EXPECT_EQ((*scores)[0].logits, scores_[number - 1]) << number;
        } else {
          EXPECT_THAT(scores.status(), StatusIs(absl::StatusCode::kNotFound));
        }
      }
    }
  }

  FakeClock clock_;
  ModelRegistry models_{Isa::kScalar};
  std::shared_ptr<const Model> model_;
  std::atomic<bool> takes_{true};
  testing::FakeGpu gpu_;
  BlockPool pool_;
  GpuTier tier_;
  ManualExecutor executor_;
  Engine engine_;
  BlockPool host_pool_;
  Engine host_;
  std::vector<float> queries_;
  std::vector<RawPart> parts_;
  std::vector<Payload> cells_;
  std::vector<std::vector<float>> scores_;
};

TEST_P(GpuStressTest, NobodyIsEverGivenAWrongByte) {
  const bool fails = GetParam();
  std::atomic<int> done{0};
  std::vector<std::thread> threads;
  for (uint32_t seed = 0; seed < 3; ++seed) {
    threads.emplace_back([this, seed, fails, &done] {
      std::mt19937 random(seed);
      for (int i = 0; i < kSteps; ++i) {
        Step(random);
        // The card's bytes stay, so that who still has addresses there reads what it should.
        if (fails && seed == 0 && i == kSteps / 2) tier_.Fail(absl::UnavailableError("a test"));
      }
      ++done;
    });
  }
  uint64_t cursor = 0;
  std::mt19937 random(99);
  while (done < 3) {
    tier_.Maintain();
    pool_.Expire();
    (void)engine_.Scrub(&cursor, 2);
    takes_ = random() % 4 != 0;
    clock_.Advance(std::chrono::milliseconds(5));
  }
  for (std::thread& thread : threads) thread.join();
  const BlockPool::Stats stats = pool_.GetStats();
  EXPECT_EQ(stats.discarded_total, 0);
  EXPECT_EQ(stats.pinned_bytes, 0);
  EXPECT_EQ(tier_.failed(), fails);
  EXPECT_GT(gpu_.encodes, 0);
  EXPECT_GT(gpu_.copies_down, 0);
}

INSTANTIATE_TEST_SUITE_P(CardWorksOrFails, GpuStressTest, ::testing::Bool());

}  // namespace
}  // namespace sketchkv
