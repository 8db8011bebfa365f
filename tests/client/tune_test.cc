// `tune` as a whole on planted data: what it recovers, what it promises, what it refuses.
#include "client/cpp/tune/tune.h"

#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "client/cpp/tune/profile_request.h"
#include "client/cpp/tune/report.h"
#include "tests/client/planted_samples.h"
#include "tests/testing/status_matchers.h"

namespace sketchkv::tune {
namespace {

class TuneTest : public testing::Test {
 protected:
  void SetUp() override {
    const auto* test = testing::UnitTest::GetInstance()->current_test_info();
    path_ = absl::StrCat(testing::TempDir(), "/sketchkv_tune_", getpid(), "_", test->name(),
                         ".safetensors");
  }
  void TearDown() override { std::filesystem::remove(path_); }

  Samples Open(PlantedSamples* planted) {
    SKETCHKV_EXPECT_OK(planted->Write(path_));
    absl::StatusOr<Samples> samples = Samples::Open(path_);
    SKETCHKV_EXPECT_OK(samples);
    return *std::move(samples);
  }

  std::string path_;
};

const CandidateFigures& Chosen(const TuneResult& result, size_t layer) {
  return result.layers[layer].candidates[result.layers[layer].chosen];
}

const CandidateFigures& Find(const TuneResult& result, size_t layer, const std::string& profile,
                             uint32_t key_row_bits = 0, uint32_t value_row_bits = 0) {
  for (const CandidateFigures& one : result.layers[layer].candidates) {
    if (one.profile == profile && one.key_row_bits == key_row_bits &&
        one.value_row_bits == value_row_bits) {
      return one;
    }
  }
  ADD_FAILURE() << profile << " " << key_row_bits << " " << value_row_bits;
  return result.layers[layer].candidates[0];
}

TEST_F(TuneTest, RecoversThePlantedAllotment) {
  PlantedSamples planted = {.num_kv_heads = 2};
  const Samples samples = Open(&planted);
  TuneOptions options = {.key_row_bits = 128, .value_row_bits = 128, .num_threads = 2};
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const TuneResult result, Tune(samples, options));
  EXPECT_EQ(result.tables.profiles, std::vector<std::string>{"klt:layers=0+1"});
  ASSERT_EQ(result.tables.heads.size(), 2u);
  for (size_t head = 0; head < 2; ++head) {
    for (const Basis* basis :
         {&result.tables.heads[head].key_basis, &result.tables.heads[head].value_basis}) {
      EXPECT_EQ(basis->group_bits, std::vector<uint8_t>{4});
      ASSERT_EQ(basis->rows.size(), 32u * 128u);
      EXPECT_NEAR(basis->group_rms[0], 1, 0.05);
      for (size_t i = 0; i < 32; ++i) {  // in the span of the first 32 planted axes
        double inside = 0;
        for (size_t j = 0; j < 32; ++j) {
          double dot = 0;
          for (size_t c = 0; c < 128; ++c) {
            dot += basis->rows[i * 128 + c] * planted.frames[head][j * 128 + c];
          }
          inside += dot * dot;
        }
        EXPECT_NEAR(inside, 1, 0.01);
      }
    }
  }
  options = {.key_row_bits = 256, .value_row_bits = 256};
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const TuneResult wider, Tune(samples, options));
  EXPECT_EQ(wider.tables.heads[0].key_basis.group_bits, (std::vector<uint8_t>{4, 2, 1, 1}));
}

TEST_F(TuneTest, BeatsTheUniformProfileAtEqualBits) {
  PlantedSamples planted;
  const Samples samples = Open(&planted);
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const TuneResult result, Tune(samples, {.target_bits = 2.2}));
  const CandidateFigures& klt = Find(result, 0, "klt", 256, 256);
  const CandidateFigures& uniform = Find(result, 0, "qjl2p:center=table,value_bits=2");
  EXPECT_NEAR(klt.bits.all, uniform.bits.all, 1e-9);
  EXPECT_LT(klt.key_error, 0.5 * uniform.key_error);
  EXPECT_LT(klt.value_error, 0.5 * uniform.value_error);
  EXPECT_LT(klt.error, 0.5 * uniform.error);
  EXPECT_EQ(Chosen(result, 0).profile, "klt");
  EXPECT_LE(result.bits.all, 2.2);
  EXPECT_EQ(result.layers[0].candidates.size(), 45u);
}

TEST_F(TuneTest, ErrorsFallWithBits) {
  PlantedSamples planted = {.strong = 100};
  const Samples samples = Open(&planted);
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const TuneResult result, Tune(samples, {.target_bits = 4.2}));
  const uint32_t ladder[] = {128, 192, 256, 320, 384, 512};
  for (size_t i = 1; i < 6; ++i) {
    const CandidateFigures& less = Find(result, 0, "klt", ladder[i - 1], 128);
    const CandidateFigures& more = Find(result, 0, "klt", ladder[i], 128);
    EXPECT_GT(more.bits.keys, less.bits.keys);
    EXPECT_LT(more.key_error, less.key_error) << ladder[i];
    EXPECT_EQ(more.value_error, less.value_error);
  }
}

TEST_F(TuneTest, MeetsTheTargetErrorAtTheFewestBits) {
  PlantedSamples planted = {.num_layers = 2, .num_kv_heads = 2};
  const Samples samples = Open(&planted);
  constexpr double kTarget = 0.01;
  const TuneOptions options = {.target_error = kTarget, .num_threads = 2};
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const TuneResult result, Tune(samples, options));
  for (size_t layer = 0; layer < 2; ++layer) {
    const CandidateFigures& chosen = Chosen(result, layer);
    ASSERT_TRUE(chosen.measured_error.has_value());
    EXPECT_LE(*chosen.measured_error, kTarget);
    EXPECT_NEAR(*chosen.measured_error, chosen.error, 0.1 * chosen.error);  // was predicted
    for (const CandidateFigures& other : result.layers[layer].candidates) {
      if (other.bits.all >= chosen.bits.all) continue;
      EXPECT_GT(other.best_known_error(), kTarget) << other.profile;
    }
  }
  // The second layer has twice the strong coordinates.
  EXPECT_LT(Chosen(result, 0).bits.all, Chosen(result, 1).bits.all);
}

// A candidate whose error together is over what was predicted of it, and a target between the two.
TEST_F(TuneTest, TakesTheNextCandidateWhereThePredictionWasTooGood) {
  PlantedSamples planted = {.dim = 32, .num_tokens = 512};
  const Samples samples = Open(&planted);
  for (int seed = 1; seed <= 100; ++seed) {
    const std::string profile = absl::StrCat("qjl2p:value_bits=2,seed=", seed);
    TuneOptions options = {.target_bits = 8, .profiles = {profile}};
    SKETCHKV_ASSERT_OK_AND_ASSIGN(const TuneResult alone, Tune(samples, options));
    const double predicted = Chosen(alone, 0).error, measured = *Chosen(alone, 0).measured_error;
    if (measured <= predicted) continue;
    options = {.target_error = (predicted + measured) / 2, .profiles = {profile, "raw"}};
    SKETCHKV_ASSERT_OK_AND_ASSIGN(const TuneResult result, Tune(samples, options));
    EXPECT_EQ(Chosen(result, 0).profile, "raw");
    EXPECT_LT(*Chosen(result, 0).measured_error, 1e-5);
    EXPECT_EQ(*result.layers[0].candidates[0].measured_error, measured);
    options.profiles.pop_back();
    EXPECT_THAT(Tune(samples, options),
                StatusIs(absl::StatusCode::kFailedPrecondition, {"1 candidates"}));
    return;
  }
  FAIL() << "no seed was predicted too well";
}

TEST_F(TuneTest, TargetBitsIsHeldAndSpentWhereItHelps) {
  PlantedSamples planted = {.num_layers = 2};
  const Samples samples = Open(&planted);
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const TuneResult result, Tune(samples, {.target_bits = 2.0}));
  EXPECT_LE(result.bits.all, 2.0);
  EXPECT_NEAR((Chosen(result, 0).bits.all + Chosen(result, 1).bits.all) / 2, result.bits.all, 1e-9);
  EXPECT_LT(Chosen(result, 0).bits.all, Chosen(result, 1).bits.all);
  EXPECT_EQ(result.raw_bytes, 2u * 64 * 2 * 128 * 2);
  EXPECT_NEAR(static_cast<double>(result.slot_bytes) * 16 / static_cast<double>(result.raw_bytes),
              result.bits.all, 1e-9);
}

TEST_F(TuneTest, ATargetOutOfReachIsRefusedWithBothNumbers) {
  PlantedSamples planted = {.num_tokens = 1024};
  const Samples samples = Open(&planted);
  EXPECT_THAT(Tune(samples, {.target_error = 1e-6}),
              StatusIs(absl::StatusCode::kFailedPrecondition, {"1e-06", "layer 0", "45"}));
  EXPECT_THAT(Tune(samples, {.target_bits = 0.5}),
              StatusIs(absl::StatusCode::kFailedPrecondition, {"0.5", "1.125"}));
}

// Attention over what the written tables decode, in double, on the held-out tokens; the last 64
// before a query and its own are exact.
TEST_F(TuneTest, MeasuredErrorIsThatOfWhatIsWritten) {
  PlantedSamples planted = {.num_tokens = 1600, .sequence_starts = {0, 1000, 1200}};
  const Samples samples = Open(&planted);
  const TuneOptions options = {.key_row_bits = 192, .value_row_bits = 128, .block_tokens = 48};
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const TuneResult result, Tune(samples, options));
  EXPECT_EQ(result.held_out_tokens, 400u);
  EXPECT_EQ(result.queries_per_head, 256u);
  const std::string path = path_ + ".tables";
  SKETCHKV_ASSERT_OK(WriteTablesFile(path, result.tables));
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const TablesFile file, ReadTablesFile(path));
  std::filesystem::remove(path);

  const KvLayout layout = {
      .num_layers = 1, .num_kv_heads = 1, .head_dim = 128, .value_dim = 128, .block_tokens = 48};
  SKETCHKV_ASSERT_OK_AND_ASSIGN(ModelTables made, ModelTables::Create(layout, file.heads));
  const auto tables = std::make_shared<const ModelTables>(std::move(made));
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const std::vector<CodecProfile> profiles,
                                ResolveTexts(file.profiles, layout, tables.get()));
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const Isa isa, ChooseIsa("auto"));
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const auto block,
                                BlockCodec::Create(layout, profiles, isa, tables));
  EXPECT_EQ(block->slot_bytes(), result.slot_bytes);

  const TokenRange range = {1200, 1600};
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const std::vector<float> keys, samples.Keys(0, 0, range));
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const std::vector<float> values, samples.Values(0, 0, range));
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const std::vector<float> queries, samples.Queries(0, 0, range));
  const std::vector<std::byte> key_rows = ToElements(keys, DType::kBf16);
  const std::vector<std::byte> value_rows = ToElements(values, DType::kBf16);
  std::vector<float> key_out(keys.size()), value_out(values.size());
  const CellCodec& codec = block->cell(0, 0);
  std::vector<std::byte> cell(codec.cell_bytes());
  for (size_t first = 0; first < 400; first += 48) {
    const auto count = static_cast<uint32_t>(std::min<size_t>(48, 400 - first));
    SKETCHKV_ASSERT_OK(codec.Encode({key_rows.data() + first * 256, 256},
                                    {value_rows.data() + first * 256, 256}, count, cell));
    const auto out = [first](std::vector<float>& rows) {
      return MutableRowsView{reinterpret_cast<std::byte*>(rows.data() + first * 128), 512};
    };
    SKETCHKV_ASSERT_OK(
        codec.Decode(cell, count, DType::kFp32, out(key_out), DType::kFp32, out(value_out)));
  }
  const auto attend = [&](const std::vector<float>& stored_keys,
                          const std::vector<float>& stored_values, const float* query,
                          size_t position) {
    std::vector<double> out(128);
    double sum = 0;
    for (size_t t = 0; t <= position; ++t) {
      const std::vector<float>& k = t + 64 < position ? stored_keys : keys;
      const std::vector<float>& v = t + 64 < position ? stored_values : values;
      double logit = 0;
      for (size_t c = 0; c < 128; ++c) logit += double{query[c]} * k[t * 128 + c];
      const double weight = std::exp(logit / std::sqrt(128.0));
      sum += weight;
      for (size_t c = 0; c < 128; ++c) out[c] += weight * v[t * 128 + c];
    }
    for (double& x : out) x /= sum;
    return out;
  };
  // Of two query heads, 256 queries: 128 of the 200 positions of the second half, evenly.
  double error = 0;
  size_t chosen = 0;
  for (size_t i = 0; i < 200; ++i) {
    if (i * 128 / 200 != chosen) continue;
    ++chosen;
    for (size_t head = 0; head < 2; ++head) {
      const float* query = queries.data() + ((200 + i) * 2 + head) * 128;
      const std::vector<double> exact = attend(keys, values, query, 200 + i);
      const std::vector<double> other = attend(key_out, value_out, query, 200 + i);
      double difference = 0, norm = 0;
      for (size_t c = 0; c < 128; ++c) {
        difference += (other[c] - exact[c]) * (other[c] - exact[c]);
        norm += exact[c] * exact[c];
      }
      error += std::sqrt(difference / norm) / 256;
    }
  }
  EXPECT_NEAR(result.measured_error / error, 1, 1e-3);
}

TEST_F(TuneTest, SameResultOnAnyNumberOfThreads) {
  PlantedSamples planted = {
      .num_layers = 2, .num_kv_heads = 2, .dim = 64, .strong = 16, .num_tokens = 1024};
  const Samples samples = Open(&planted);
  TuneOptions options = {.target_bits = 2.5};
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const TuneResult one, Tune(samples, options));
  options.num_threads = 3;
  uint64_t done = 0;
  SKETCHKV_ASSERT_OK_AND_ASSIGN(
      const TuneResult three,
      Tune(samples, options, [&done](uint64_t now, uint64_t total) { done += now == total; }));
  EXPECT_EQ(done, 2u);  // the study and the measurement of the choice
  EXPECT_TRUE(one.tables.heads == three.tables.heads);
  EXPECT_TRUE(ReportJson(one) == ReportJson(three));
}

TEST_F(TuneTest, CandidatesAskedForByLayer) {
  PlantedSamples planted = {.num_layers = 3, .dim = 64, .strong = 16, .num_tokens = 1024};
  const Samples samples = Open(&planted);
  TuneOptions options = {.target_bits = 16,
                         .profiles = {"qjl2p:layers=0+2,outliers=6,outlier_source=table",
                                      "qjl4p:layers=2+1,value_bits=4"}};
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const TuneResult result, Tune(samples, options));
  EXPECT_EQ(result.tables.profiles,
            (std::vector<std::string>{"qjl2p:layers=0+2,outliers=6,outlier_source=table",
                                      "qjl4p:layers=2+1,value_bits=4"}));
  EXPECT_EQ(result.tables.heads[1].outlier_channels.size(), 6u);
  EXPECT_EQ(result.tables.heads[2].outlier_channels.size(), 4u);
  EXPECT_TRUE(result.tables.heads[0].key_basis.empty());
  options.profiles.pop_back();
  EXPECT_THAT(Tune(samples, options),
              StatusIs(absl::StatusCode::kInvalidArgument, {"1 profiles", "layer 2"}));
}

TEST_F(TuneTest, AnyProfileMayUseTables) {
  PlantedSamples planted = {.num_layers = 2, .dim = 64, .strong = 16, .num_tokens = 1024};
  const Samples samples = Open(&planted);
  const TuneOptions options = {.target_bits = 3.2, .profiles = {"qjl3p:values=basis,center=table"}};
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const TuneResult result, Tune(samples, options));
  EXPECT_EQ(result.layers[1].candidates.size(), 6u);
  EXPECT_TRUE(result.tables.heads[1].key_basis.empty());
  EXPECT_EQ(ValueRowBits(result.tables.heads[1].value_basis, 64), Chosen(result, 1).value_row_bits);
  EXPECT_LE(result.bits.all, 3.2);
}

// qjl-paper has twice the bits in the first 15 of 32 layers.
TEST_F(TuneTest, ProfilesThatGoByTheLayer) {
  PlantedSamples planted = {.num_layers = 2, .dim = 64, .strong = 16, .num_tokens = 512};
  const Samples samples = Open(&planted);
  const TuneOptions options = {.target_bits = 8, .profiles = {"qjl-paper"}};
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const TuneResult result, Tune(samples, options));
  EXPECT_GT(Chosen(result, 0).bits.keys, Chosen(result, 1).bits.keys + 0.9);
  EXPECT_NEAR((Chosen(result, 0).bits.all + Chosen(result, 1).bits.all) / 2, result.bits.all, 1e-9);
}

TEST_F(TuneTest, WarnsOfFewCalibrationTokensAndWorks) {
  PlantedSamples planted = {.num_tokens = 100};
  const Samples samples = Open(&planted);
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const TuneResult result, Tune(samples, {.target_bits = 4.2}));
  ASSERT_EQ(result.warnings.size(), 1u);
  EXPECT_THAT(result.warnings[0],
              testing::AllOf(testing::HasSubstr("75"), testing::HasSubstr("512")));
  EXPECT_LT(result.measured_error, 1);
  PlantedSamples enough;
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const TuneResult quiet, Tune(Open(&enough), {.target_bits = 4.2}));
  EXPECT_TRUE(quiet.warnings.empty());
}

TEST_F(TuneTest, BadOptions) {
  PlantedSamples planted = {.dim = 64, .strong = 16, .num_tokens = 200};
  const Samples samples = Open(&planted);
  const auto expect = [&](const TuneOptions& options, std::vector<std::string> parts) {
    EXPECT_THAT(Tune(samples, options), StatusIs(absl::StatusCode::kInvalidArgument, parts));
  };
  expect({}, {"0 are given", "1"});
  expect({.target_error = 0.1, .target_bits = 3}, {"2 are given", "1"});
  expect({.key_row_bits = 64}, {"value_row_bits"});
  expect({.key_row_bits = 100, .value_row_bits = 64}, {"layer 0 head 0", "100", "96 or 128"});
  expect({.target_bits = 3, .block_tokens = 2000}, {"block_tokens", "2000", "1024"});
  expect({.target_bits = 3, .holdout = 1}, {"holdout", "1"});
}

TEST_F(TuneTest, BadSamples) {
  const std::vector<float> zeros(4 * 2 * 16);
  std::vector<float> bad = zeros;
  bad[70] = std::numeric_limits<float>::quiet_NaN();
  const auto tensor = [](const std::string& name, std::vector<uint64_t> shape,
                         const std::vector<float>& data) {
    size_t count = 1;
    for (const uint64_t extent : shape) count *= extent;
    return NamedTensor{name, "F32", std::move(shape), std::as_bytes(std::span(data).first(count))};
  };
  const NamedTensor keys = tensor("layers.0.keys", {4, 2, 16}, zeros);
  const NamedTensor values = tensor("layers.0.values", {4, 2, 16}, zeros);
  const NamedTensor queries = tensor("layers.0.queries", {4, 2, 16}, zeros);
  const auto expect = [this](const std::vector<NamedTensor>& tensors,
                             std::vector<std::string> parts) {
    SKETCHKV_ASSERT_OK(WriteSafetensors(path_, tensors));
    EXPECT_THAT(Samples::Open(path_), StatusIs(absl::StatusCode::kInvalidArgument, parts));
  };
  expect({values, queries}, {"layers.0.keys"});
  expect({keys, values}, {"layers.0.queries", "not there"});
  expect({keys, values, tensor("layers.0.queries", {4, 1, 16}, zeros)},
         {"layers.0.queries", "[4, 1, 16]", "multiple of 2"});
  expect({keys, queries, tensor("layers.0.values", {2, 2, 16}, zeros)},
         {"layers.0.values", "[2, 2, 16]", "[4, 2, 16]"});
  expect({keys, queries, values, tensor("layers.2.keys", {4, 2, 16}, zeros)},
         {"layers.2.keys", "layers 0 to 0"});
  expect(
      {keys, queries, values, tensor("layers.1.keys", {2, 2, 16}, zeros),
       tensor("layers.1.queries", {4, 2, 16}, zeros), tensor("layers.1.values", {4, 2, 16}, zeros)},
      {"layers.1.keys", "[2, 2, 16]", "[4, 2, 16]"});
  expect({keys, queries, tensor("layers.0.values", {4, 32}, zeros)}, {"[4, 32]"});
  for (const std::vector<int64_t>& starts :
       std::vector<std::vector<int64_t>>{{1}, {0, 0}, {0, 3, 2}, {0, 4}, {0, -1}}) {
    expect({keys,
            queries,
            values,
            {"sequence_starts", "I64", {starts.size()}, std::as_bytes(std::span(starts))}},
           {"sequence_starts", absl::StrCat(starts.back())});
  }
  SKETCHKV_ASSERT_OK(WriteSafetensors(
      path_, std::vector{tensor("layers.0.keys", {4, 2, 16}, bad), queries, values}));
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const Samples samples, Samples::Open(path_));
  EXPECT_THAT(Tune(samples, {.target_bits = 8}),
              StatusIs(absl::StatusCode::kInvalidArgument, {"layers.0.keys", "nan", "token 2"}));
}

TEST_F(TuneTest, ReportShowsTheChoiceAndItsNeighbours) {
  PlantedSamples planted = {.num_layers = 2, .strong = 100, .num_tokens = 1024};
  const Samples samples = Open(&planted);
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const TuneResult result, Tune(samples, {.target_bits = 2.6}));
  const std::string text = ReportText(result);
  for (const char* part : {"chosen", "cheaper", "better", "klt", "row bits", "worst head",
                           "profiles klt:layers=", "of raw", "predicted", "measured"}) {
    EXPECT_THAT(text, testing::HasSubstr(part));
  }
  const auto json = nlohmann::json::parse(ReportJson(result), nullptr, false);
  ASSERT_TRUE(json.is_object());
  ASSERT_EQ(json["layers"].size(), 2u);
  ASSERT_EQ(json["layers"][1]["candidates"].size(), 45u);
  const auto& chosen = json["layers"][1]["candidates"][json["layers"][1]["chosen"].get<size_t>()];
  EXPECT_EQ(chosen["measured_error"], *Chosen(result, 1).measured_error);
  EXPECT_EQ(json["bits_per_number"]["all"], result.bits.all);
}

}  // namespace
}  // namespace sketchkv::tune
