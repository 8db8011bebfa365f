#include "service/engine/model_registry.h"

#include <gtest/gtest.h>

#include "tests/testing/engine_fixture.h"

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
  EXPECT_EQ(first->codec->profiles()[3].name, std::string(kDefaultProfile));
  EXPECT_EQ(first->shape.slot_bytes, first->codec->slot_bytes());
  EXPECT_EQ(registry.size(), 1);
}

TEST(ModelRegistryTest, AnotherLayoutUnderTheNameIsRefusedNamingTheField) {
  ModelRegistry registry(Isa::kScalar);
  SKETCHKV_ASSERT_OK(registry.Register(0, "m", SmallLayout(), {}));
  KvLayout other = SmallLayout();
  other.block_tokens = 32;
  EXPECT_THAT(
      registry.Register(0, "m", other, {}),
      StatusIs(absl::StatusCode::kAlreadyExists, {"block_tokens = 16", "block_tokens = 32"}));
  LayerProfileRequest raw;
  raw.profile.name = "raw";
  EXPECT_THAT(
      registry.Register(0, "m", SmallLayout(), {raw}),
      StatusIs(absl::StatusCode::kAlreadyExists, {"profiles[layer 0].name", "qjl3p", "raw"}));
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

// What a model with this profile and these tables has for a fingerprint, in a registry of its own.
Fingerprint FingerprintWith(const ProfileRequest& profile, uint64_t tables_seed) {
  ModelRegistry registry(Isa::kScalar);
  std::optional<Digest128> digest;
  if (tables_seed != 0) {
    digest =
        registry.tables().Add(0, SmallLayout(), RandomHeads(SmallLayout(), 4, tables_seed))->digest;
  }
  const auto model = registry.Register(0, "m", SmallLayout(), {{.profile = profile}}, digest);
  EXPECT_THAT(model, IsOk());
  EXPECT_EQ((*model)->tables_digest.has_value(), (*model)->codec->tables() != nullptr);
  return (*model)->fingerprint;
}

TEST(ModelRegistryTest, FingerprintsFollowTheTablesWhereTheyAreUsed) {
  ProfileRequest klt, centered, outliers, plain;
  klt.name = "klt";
  centered.centering = Centering::kTable;
  outliers.num_outliers = 4;
  outliers.outlier_source = OutlierSource::kTable;
  for (const ProfileRequest& uses : {klt, centered, outliers}) {
    EXPECT_EQ(FingerprintWith(uses, 1), FingerprintWith(uses, 1));
    EXPECT_NE(FingerprintWith(uses, 1), FingerprintWith(uses, 2));
  }
  EXPECT_EQ(FingerprintWith(plain, 0), FingerprintWith(plain, 1));
}

TEST(ModelRegistryTest, EveryKnobIsPartOfTheFingerprintAndNamedWhereItDiffers) {
  ModelRegistry registry(Isa::kScalar);
  SKETCHKV_ASSERT_OK(registry.Register(0, "m", SmallLayout(), {}));
  const auto expect = [&](const std::string& field, const ProfileRequest& profile) {
    EXPECT_THAT(registry.Register(0, "m", SmallLayout(), {{.profile = profile}}),
                StatusIs(absl::StatusCode::kAlreadyExists, {"profiles[layer 0]." + field}));
  };
  expect("name", {.name = "qjl2p"});
  expect("scale_rule = 1", {.scale_rule = ScaleRule::kLeastSquares});
  expect("centering = 1", {.centering = Centering::kBlock});
  expect("outlier_method = 1", {.num_outliers = 2});
  expect("value_codec = 3", {.value_codec = ValueCodec::kMinMax});
  expect("value_scale_rule = 1", {.value_scale_rule = ScaleRule::kLeastSquares});
  expect("value_bits = 2", {.value_bits = 3});
  expect("projection = 1", {.projection = Projection::kOrthogonal});
}

TEST(ModelRegistryTest, TablesMustBeHereAndServeTheProfile) {
  ModelRegistry registry(Isa::kScalar);
  const std::vector<LayerProfileRequest> klt = {{.profile = {.name = "klt"}}};
  EXPECT_THAT(registry.Register(0, "m", SmallLayout(), klt),
              StatusIs(absl::StatusCode::kInvalidArgument, {"klt", "tables"}));
  EXPECT_THAT(registry.Register(0, "m", SmallLayout(), klt, Digest128{1, 2}),
              StatusIs(absl::StatusCode::kFailedPrecondition, {"0102", "upload them first"}));

  SKETCHKV_ASSERT_OK_AND_ASSIGN(
      const StoredTables mine, registry.tables().Add(0, SmallLayout(), RandomHeads(SmallLayout())));
  KvLayout other = SmallLayout();
  other.head_dim = 32;
  EXPECT_THAT(registry.Register(0, "m", other, klt, mine.digest),
              StatusIs(absl::StatusCode::kInvalidArgument, {"head_dim", "64", "32"}));
  other = SmallLayout();
  other.num_layers = 5;
  EXPECT_THAT(registry.Register(0, "m", other, klt, mine.digest),
              StatusIs(absl::StatusCode::kInvalidArgument, {"layers", "4", "5"}));
  ProfileRequest outliers;  // the tables have none
  outliers.num_outliers = 3;
  outliers.outlier_source = OutlierSource::kTable;
  EXPECT_THAT(registry.Register(0, "m", SmallLayout(), {{.profile = outliers}}, mine.digest),
              StatusIs(absl::StatusCode::kInvalidArgument, {"layer 0", "outlier_channels", "3"}));
  EXPECT_EQ(registry.size(), 0);

  SKETCHKV_ASSERT_OK_AND_ASSIGN(const auto model,
                                registry.Register(0, "m", SmallLayout(), klt, mine.digest));
  // Which is also what tables with bases give who asks for no profile.
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const auto by_default,
                                registry.Register(0, "m", SmallLayout(), {}, mine.digest));
  EXPECT_EQ(by_default, model);
  SKETCHKV_ASSERT_OK_AND_ASSIGN(
      const StoredTables theirs,
      registry.tables().Add(0, SmallLayout(), RandomHeads(SmallLayout(), 0, 2)));
  EXPECT_THAT(registry.Register(0, "m", SmallLayout(), klt, theirs.digest),
              StatusIs(absl::StatusCode::kAlreadyExists,
                       {"tables_digest = " + ToHex(mine.digest), ToHex(theirs.digest)}));
}

TEST(ModelRegistryTest, ProfilesMustCoverEachLayerOnce) {
  ModelRegistry registry(Isa::kScalar);
  LayerProfileRequest raw_first{.profile = {.name = "raw"}, .layer_begin = 0, .layer_count = 1};
  LayerProfileRequest qjl_rest{.profile = {.name = "qjl"}, .layer_begin = 1};
  SKETCHKV_ASSERT_OK_AND_ASSIGN(
      const auto model, registry.Register(0, "mixed", SmallLayout(), {raw_first, qjl_rest}));
  EXPECT_EQ(model->codec->profiles()[0].name, "raw");
  EXPECT_EQ(model->codec->profiles()[1].name, "qjl");
  EXPECT_GT(model->codec->cell_bytes(0), model->codec->cell_bytes(1));

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
