#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "service/engine/gpu_tier.h"
#include "service/gpu/open_gpu.h"
#include "service/pool/arena_tier.h"
#include "tests/gpu/device_array.h"
#include "tests/testing/engine_fixture.h"

namespace sketchkv {

inline constexpr uint32_t kDim = 128;
inline constexpr uint32_t kHeads = 4;
inline constexpr uint32_t kGroup = 4;  // queries a kv head

// Both read the same bytes, and the host rounds queries and weights more coarsely
// (kernels/README.md). What is asked here is whether everything goes where it belongs: another row
// or token is off by far more.
inline constexpr double kRounding = 6e-3;
inline constexpr double kLogitRounding = 4e-2;

inline KvLayout LayoutOf(uint32_t block_tokens) {
  return {.num_layers = 3,
          .num_kv_heads = kHeads,
          .head_dim = kDim,
          .value_dim = kDim,
          .block_tokens = block_tokens,
          .key_dtype = DType::kFp32,
          .value_dtype = DType::kFp32};
}

struct Case {
  std::string profile;
  uint32_t block_tokens;
};
inline std::string NameOf(const ::testing::TestParamInfo<Case>& info) {
  std::string name = info.param.profile + "_" + std::to_string(info.param.block_tokens);
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
}
inline void PrintTo(const Case& c, std::ostream* out) {
  *out << c.profile << " " << c.block_tokens;
}

// Of suites over the fixture: a card's tuned kernels, and its general path.
inline const auto kTuned = ::testing::Values(Case{"qjl", 16}, Case{"qjl3p", 64}, Case{"qjl2p", 32});
inline const auto kGeneral =
    ::testing::Values(Case{"raw", 16}, Case{"qjl", 48}, Case{"qjl4p", 32}, Case{"qjl-paper", 64});

// The engine on a card, and the same engine on the host.
class GpuEngineFixture : public ::testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    SKETCHKV_NEED_GPU();
    const uint64_t tier_bytes = uint64_t{256} << 20;
    auto opened = OpenGpu({.tier_bytes = tier_bytes});
    ASSERT_THAT(opened, IsOk());
    gpu_ = *std::move(opened);
    pool_.emplace(BlockPool::Options{.budget_bytes = tier_bytes}, &clock_,
                  std::make_unique<ArenaTier>(gpu_->TierMemory()));
    tier_.emplace(gpu_.get(), &*pool_, &models_);
    engine_.emplace(&models_, &*pool_, &executor_, &*tier_);
    host_pool_.emplace(BlockPool::Options{.budget_bytes = tier_bytes}, &clock_);
    host_.emplace(&models_, &*host_pool_, &executor_);
    LayerProfileRequest profile;
    profile.profile.name = GetParam().profile;
    model_ = *models_.Register(0, "m", LayoutOf(GetParam().block_tokens), {profile});
  }
  void TearDown() override {
    if (gpu_ == nullptr) return;
    EXPECT_THAT(gpu_->Check(), IsOk());
  }

  // Blocks first, first + 1, ...
  void PutChain(uint64_t first, uint32_t tokens) {
    const uint32_t block_tokens = GetParam().block_tokens;
    for (uint32_t i = 0; i * block_tokens < tokens; ++i) {
      const RawPart part =
          RandomPart(*model_, {}, std::min(block_tokens, tokens - i * block_tokens), first + i);
      for (Engine* to : {&*engine_, &*host_}) {
        Engine::PutRequest request{.model = model_,
                                   .hash = TestHash(first + i),
                                   .part = part.layout,
                                   .payload = Bytes(part.payload)};
        if (i > 0) request.parent = TestHash(first + i - 1);
        ASSERT_THAT(to->Put(0, request), IsOk());
      }
      chain_[first].push_back(TestHash(first + i));
    }
  }
  AttentionItem Item(uint64_t first, uint32_t layer, uint32_t num_query_tokens = 1) {
    AttentionItem item;
    item.tip = chain_[first].back();
    item.layer = layer;
    item.head_count = kHeads;
    item.num_query_tokens = num_query_tokens;
    item.options.softmax_scale = 0.08838834764f;
    return item;
  }
  static std::vector<float> QueriesFor(const AttentionRequest& request, uint64_t seed) {
    size_t rows = 0;
    for (const auto& item : request.items) {
      rows += size_t{item.num_query_tokens} * item.head_count * request.queries_per_kv_head;
    }
    std::vector<float> queries(rows * kDim);
    std::mt19937_64 random(seed);
    std::normal_distribution<float> normal;
    for (float& x : queries) x = normal(random);
    return queries;
  }
  void ExpectSame(std::vector<AttentionItem> items, uint64_t seed) {
    AttentionRequest request{
        .model = model_, .queries_per_kv_head = kGroup, .items = std::move(items)};
    const std::vector<float> queries = QueriesFor(request, seed);
    request.queries = queries;
    std::vector<float> ours(AnswerFloats(request), std::nanf("")), theirs(ours);
    ASSERT_THAT(engine_->Attend(0, request, ours), IsOk());
    ASSERT_THAT(host_->Attend(0, request, theirs), IsOk());
    double largest = 0, worst = 0;
    for (size_t i = 0; i < ours.size(); ++i) {
      if (std::isinf(theirs[i])) {
        ASSERT_EQ(ours[i], theirs[i]);
        continue;
      }
      largest = std::max<double>(largest, std::fabs(theirs[i]));
      worst = std::max<double>(worst, std::fabs(ours[i] - theirs[i]));
      ASSERT_FALSE(std::isnan(ours[i])) << i;
    }
    EXPECT_LE(worst, kRounding * std::max(1.0, largest));
  }
  void ExpectSameScores(const AttentionItem& item, uint64_t seed) {
    AttentionRequest request{.model = model_, .queries_per_kv_head = kGroup, .items = {item}};
    const std::vector<float> queries = QueriesFor(request, seed);
    request.queries = queries;
    SKETCHKV_ASSERT_OK_AND_ASSIGN(const auto ours, engine_->Score(0, request));
    SKETCHKV_ASSERT_OK_AND_ASSIGN(const auto theirs, host_->Score(0, request));
    ASSERT_EQ(ours[0].logits.size(), theirs[0].logits.size());
    for (size_t i = 0; i < ours[0].logits.size(); ++i) {
      // Logits of random queries and keys are about 1.
      ASSERT_NEAR(ours[0].logits[i], theirs[0].logits[i], kLogitRounding) << i;
    }
  }

  FakeClock clock_;
  ModelRegistry models_{Isa::kScalar};
  ManualExecutor executor_;
  std::unique_ptr<Gpu> gpu_;
  std::optional<BlockPool> pool_, host_pool_;
  std::optional<GpuTier> tier_;
  std::optional<Engine> engine_, host_;
  std::shared_ptr<const Model> model_;
  std::map<uint64_t, std::vector<BlockHash>> chain_;
};

}  // namespace sketchkv
