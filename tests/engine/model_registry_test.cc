#include "service/engine/model_registry.h"

#include <gtest/gtest.h>

#include "tests/testing/status_matchers.h"

namespace sketchkv {
namespace {

KvLayout SmallLayout() {
  return {.num_layers = 4, .num_kv_heads = 2, .head_dim = 64, .value_dim = 32, .block_tokens = 16};
}

TEST(ModelRegistryTest, RegisteringAgainGivesTheSameModel) {
  ModelRegistry registry(Isa::kScalar);
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const auto first, registry.Register(0, "m", SmallLayout(), {}));
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const auto again, registry.Register(0, "m", SmallLayout(), {}));
  EXPECT_EQ(first, again);
  EXPECT_EQ(first->codec->profiles()[3].name, "qjl");
  EXPECT_EQ(first->shape.slot_bytes, first->codec->slot_bytes());
  EXPECT_EQ(registry.size(), 1);
}

TEST(ModelRegistryTest, AnotherLayoutUnderTheNameIsRefusedNamingTheField) {
  ModelRegistry registry(Isa::kScalar);
  SKETCHKV_ASSERT_OK(registry.Register(0, "m", SmallLayout(), {}));
  KvLayout other = SmallLayout();
  other.block_tokens = 32;
  EXPECT_THAT(registry.Register(0, "m", other, {}),
              StatusIs(absl::StatusCode::kAlreadyExists, {"block_tokens = 16", "block_tokens = 32"}));
  LayerProfileRequest raw;
  raw.profile.name = "raw";
  EXPECT_THAT(registry.Register(0, "m", SmallLayout(), {raw}),
              StatusIs(absl::StatusCode::kAlreadyExists, {"profiles[layer 0].name", "qjl", "raw"}));
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const auto still, registry.Get(0, "m"));
  EXPECT_EQ(still->layout().block_tokens, 16);
}

TEST(ModelRegistryTest, FingerprintsTellNamesLayoutsAndKnobsApart) {
  ModelRegistry registry(Isa::kScalar);
  std::vector<Fingerprint> seen;
  const auto add = [&](const std::string& name, const KvLayout& layout,
                       const std::vector<LayerProfileRequest>& profiles) {
    const auto model = registry.Register(0, name, layout, profiles);
    ASSERT_THAT(model, IsOk());
    for (const Fingerprint& other : seen) EXPECT_NE((*model)->fingerprint, other) << name;
    seen.push_back((*model)->fingerprint);
  };
  add("a", SmallLayout(), {});
  add("b", SmallLayout(), {});
  KvLayout heads = SmallLayout();
  heads.num_kv_heads = 4;
  add("c", heads, {});
  LayerProfileRequest seeded;
  seeded.profile.seed = 99;
  add("d", SmallLayout(), {seeded});
  // The same name for another tenant is another model with the same digest.
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const auto theirs, registry.Register(7, "a", SmallLayout(), {}));
  EXPECT_EQ(theirs->fingerprint, seen[0]);
  EXPECT_EQ(registry.List(7).size(), 1);
  EXPECT_EQ(registry.List(0).size(), 4);
}

TEST(ModelRegistryTest, ProfilesMustCoverEachLayerOnce) {
  ModelRegistry registry(Isa::kScalar);
  LayerProfileRequest raw_first{.profile = {.name = "raw"}, .layer_begin = 0, .layer_count = 1};
  LayerProfileRequest qjl_rest{.profile = {.name = "qjl"}, .layer_begin = 1};
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const auto model,
                                registry.Register(0, "mixed", SmallLayout(), {raw_first, qjl_rest}));
  EXPECT_EQ(model->codec->profiles()[0].name, "raw");
  EXPECT_EQ(model->codec->profiles()[1].name, "qjl");
  EXPECT_GT(model->codec->cell(0).cell_bytes(), model->codec->cell(1).cell_bytes());

  EXPECT_THAT(registry.Register(0, "hole", SmallLayout(), {raw_first}),
              StatusIs(absl::StatusCode::kInvalidArgument, {"layer 1"}));
  LayerProfileRequest all{.profile = {.name = "qjl"}};
  EXPECT_THAT(registry.Register(0, "twice", SmallLayout(), {raw_first, all}),
              StatusIs(absl::StatusCode::kInvalidArgument, {"profiles[1]", "layer 0"}));
  LayerProfileRequest beyond{.profile = {.name = "qjl"}, .layer_begin = 2, .layer_count = 3};
  EXPECT_THAT(registry.Register(0, "beyond", SmallLayout(), {beyond}),
              StatusIs(absl::StatusCode::kInvalidArgument, {"2 to 5", "4"}));
}

TEST(ModelRegistryTest, BadNamesAndLayoutsAreRefused) {
  ModelRegistry registry(Isa::kScalar);
  EXPECT_THAT(registry.Register(0, "", SmallLayout(), {}),
              StatusIs(absl::StatusCode::kInvalidArgument, {"0 characters"}));
  EXPECT_THAT(registry.Register(0, "a b", SmallLayout(), {}),
              StatusIs(absl::StatusCode::kInvalidArgument, {"byte 32", "at 1"}));
  KvLayout bad = SmallLayout();
  bad.head_dim = 20;
  EXPECT_THAT(registry.Register(0, "m", bad, {}),
              StatusIs(absl::StatusCode::kInvalidArgument, {"head_dim", "20"}));
  EXPECT_EQ(registry.size(), 0);
}

TEST(ModelRegistryTest, RemovedModelsAreGoneButStayValidForHolders) {
  ModelRegistry registry(Isa::kScalar);
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const auto model, registry.Register(0, "m", SmallLayout(), {}));
  EXPECT_THAT(registry.Remove(1, "m"), StatusIs(absl::StatusCode::kNotFound));
  SKETCHKV_ASSERT_OK(registry.Remove(0, "m"));
  EXPECT_THAT(registry.Get(0, "m"), StatusIs(absl::StatusCode::kNotFound, {"'m'"}));
  EXPECT_GT(model->codec->slot_bytes(), 0);
}

}  // namespace
}  // namespace sketchkv
