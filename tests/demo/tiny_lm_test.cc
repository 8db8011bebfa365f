#include "client/cpp/examples/tiny_lm.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <limits>
#include <memory>
#include <nlohmann/json.hpp>
#include <numbers>
#include <random>
#include <string>
#include <vector>

#include "client/cpp/examples/past_kv.h"
#include "tests/testing/status_matchers.h"

namespace sketchkv::example {
namespace {

const std::string kModelDir = std::string(SKETCHKV_TEST_DATA) + "/tiny-lm";

std::vector<uint8_t> ReadBytes(const std::string& name, size_t count) {
  std::ifstream file(kModelDir + "/" + name, std::ios::binary);
  std::vector<uint8_t> bytes(count);
  file.read(reinterpret_cast<char*>(bytes.data()), static_cast<std::streamsize>(count));
  EXPECT_EQ(static_cast<size_t>(file.gcount()), count) << name;
  return bytes;
}

// Mean bits of predicting bytes first+1 .. last from rows first .. last-1 of `logits`.
double BitsPerByte(const std::vector<float>& logits, const std::vector<uint8_t>& text,
                   size_t first) {
  double bits = 0.0;
  for (size_t row = first; row + 1 < text.size(); ++row) {
    double sum = 0.0;
    for (size_t i = 0; i < 256; ++i) sum += std::exp(double{logits[row * 256 + i]});
    bits += (std::log(sum) - logits[row * 256 + text[row + 1]]) / std::numbers::ln2;
  }
  return bits / static_cast<double>(text.size() - 1 - first);
}

float MaxDifference(const std::vector<float>& a, const std::vector<float>& b) {
  EXPECT_EQ(a.size(), b.size());
  float max = 0.0f;
  for (size_t i = 0; i < a.size(); ++i) max = std::max(max, std::fabs(a[i] - b[i]));
  return max;
}

class TinyLmTest : public testing::Test {
 protected:
  void SetUp() override { SKETCHKV_ASSERT_OK_AND_ASSIGN(model_, TinyLm::Load(kModelDir)); }
  [[nodiscard]] LocalKv NewKv(CacheRounding rounding = CacheRounding::kBf16) const {
    return {model_->config().kv_shape(), model_->config().context, rounding};
  }

  std::unique_ptr<TinyLm> model_;
};

// reference.json was made by another implementation: float32, its cache not rounded, logits to four
// decimals.
TEST_F(TinyLmTest, EqualsTheReference) {
  std::ifstream file(kModelDir + "/reference.json");
  const nlohmann::json reference = nlohmann::json::parse(file);
  for (const std::string text_name : {"heldout.txt", "sample.txt"}) {
    const nlohmann::json& expected = reference.at(text_name);
    const std::vector<uint8_t> text = ReadBytes(text_name, expected.at("bytes").get<size_t>());
    LocalKv kv = NewKv(CacheRounding::kNone);
    std::vector<float> logits;
    SKETCHKV_ASSERT_OK(model_->Forward(text, nullptr, &kv, &logits));
    EXPECT_NEAR(BitsPerByte(logits, text, 0), expected.at("bits_per_byte_all").get<double>(), 1e-5);
    EXPECT_NEAR(BitsPerByte(logits, text, 768), expected.at("bits_per_byte_from_768").get<double>(),
                1e-5);
    size_t compared = 0;
    for (const auto& [position, row] : expected.at("logits").items()) {
      for (size_t i = 0; i < row.size(); ++i, ++compared) {
        EXPECT_NEAR(logits[std::stoul(position) * 256 + i], row[i].get<float>(), 1e-3)
            << text_name << " position " << position << " logit " << i;
      }
    }
    EXPECT_EQ(compared, 48u);
  }
}

// Rounding keys and values to bf16, as engines do, must cost next to nothing, but something.
TEST_F(TinyLmTest, RoundingTheCacheToBf16IsAlmostFree) {
  const std::vector<uint8_t> text = ReadBytes("heldout.txt", 256);
  std::vector<float> exact, rounded;
  LocalKv exact_kv = NewKv(CacheRounding::kNone), rounded_kv = NewKv();
  SKETCHKV_ASSERT_OK(model_->Forward(text, nullptr, &exact_kv, &exact));
  SKETCHKV_ASSERT_OK(model_->Forward(text, nullptr, &rounded_kv, &rounded));
  EXPECT_GT(MaxDifference(exact, rounded), 0.0f);
  EXPECT_NEAR(BitsPerByte(exact, text, 0), BitsPerByte(rounded, text, 0), 1e-3);
}

TEST_F(TinyLmTest, ABatchEqualsTokenByTokenToTheBit) {
  const std::vector<uint8_t> text = ReadBytes("sample.txt", 100);
  LocalKv batch_kv = NewKv(), single_kv = NewKv();
  std::vector<float> batch, single, row;
  SKETCHKV_ASSERT_OK(model_->Forward(text, nullptr, &batch_kv, &batch));
  for (const uint8_t token : text) {
    SKETCHKV_ASSERT_OK(model_->Forward({&token, 1}, nullptr, &single_kv, &row));
    single.insert(single.end(), row.begin(), row.end());
  }
  EXPECT_EQ(MaxDifference(batch, single), 0.0f);
}

TEST_F(TinyLmTest, PastMergedWithRecentEqualsOneSequence) {
  const std::vector<uint8_t> text = ReadBytes("heldout.txt", 200);
  const std::span<const uint8_t> tokens(text);
  // Not rounded: another order of summation could tip a number over a bf16 edge.
  LocalKv whole = NewKv(CacheRounding::kNone);
  std::vector<float> all;
  SKETCHKV_ASSERT_OK(model_->Forward(tokens, nullptr, &whole, &all));
  for (const size_t split : {1u, 64u, 199u}) {
    LocalKv past = NewKv(CacheRounding::kNone), recent = NewKv(CacheRounding::kNone);
    std::vector<float> logits;
    SKETCHKV_ASSERT_OK(model_->Forward(tokens.first(split), nullptr, &past, &logits));
    SKETCHKV_ASSERT_OK(model_->Forward(tokens.subspan(split), &past, &recent, &logits));
    const std::vector<float> expected(all.begin() + static_cast<ptrdiff_t>(split * 256), all.end());
    EXPECT_LT(MaxDifference(logits, expected), 1e-3f) << split;
  }
}

TEST_F(TinyLmTest, Bf16GoesOutAndComesBackUnchanged) {
  const std::vector<uint8_t> text = ReadBytes("heldout.txt", 200);
  const std::span<const uint8_t> tokens(text);
  LocalKv past = NewKv(), copy = NewKv(), recent_a = NewKv(), recent_b = NewKv();
  std::vector<float> a, b;
  SKETCHKV_ASSERT_OK(model_->Forward(tokens.first(128), nullptr, &past, &a));
  for (uint32_t layer = 0; layer < model_->config().layers; ++layer) {
    const std::vector<std::byte> payload = past.ExportBf16(layer, 0, 128);
    EXPECT_EQ(payload.size(), 128u * 2 * 128 * 2 * 2);  // tokens, heads, dim, K and V, bf16
    copy.AppendBf16(layer, std::span(payload));
  }
  SKETCHKV_ASSERT_OK(model_->Forward(tokens.subspan(128), &past, &recent_a, &a));
  SKETCHKV_ASSERT_OK(model_->Forward(tokens.subspan(128), &copy, &recent_b, &b));
  EXPECT_EQ(MaxDifference(a, b), 0.0f);
}

TEST_F(TinyLmTest, RefusesWhatTheContextCannotHold) {
  LocalKv past = NewKv(), recent = NewKv();
  std::vector<float> logits;
  EXPECT_THAT(model_->Forward({}, nullptr, &recent, &logits),
              StatusIs(absl::StatusCode::kInvalidArgument, {"tokens: 0"}));
  const std::vector<uint8_t> prefix(24, 'a');
  SKETCHKV_ASSERT_OK(model_->Forward(prefix, nullptr, &past, &logits));
  EXPECT_THAT(model_->Forward(std::vector<uint8_t>(1001, 'a'), &past, &recent, &logits),
              StatusIs(absl::StatusCode::kInvalidArgument, {"position 1024", "context of 1024"}));
  EXPECT_EQ(recent.num_tokens(), 0u);
}

class BrokenPast final : public PastKv {
 public:
  [[nodiscard]] uint32_t num_tokens() const override { return 4; }
  [[nodiscard]] absl::Status Attend(uint32_t layer, std::span<const float>, std::span<float>,
                                    std::span<float>) override {
    return layer == 2 ? absl::UnavailableError("gone") : absl::OkStatus();
  }
};

TEST_F(TinyLmTest, AnErrorOfThePastIsTheForwardPass) {
  BrokenPast past;
  LocalKv recent = NewKv();
  std::vector<float> logits;
  EXPECT_THAT(model_->Forward(std::vector<uint8_t>{'a'}, &past, &recent, &logits),
              StatusIs(absl::StatusCode::kUnavailable, {"gone"}));
}

TEST(TinyLmLoadTest, NamesWhatDoesNotFit) {
  EXPECT_THAT(TinyLm::Load("no/such/folder"),
              StatusIs(absl::StatusCode::kNotFound, {"no/such/folder/config.json"}));
  const std::filesystem::path dir =
      std::filesystem::path(testing::TempDir()) / ("tiny_lm_" + std::to_string(getpid()));
  std::filesystem::create_directory(dir);
  std::filesystem::copy_file(kModelDir + "/model.safetensors", dir / "model.safetensors");
  std::ifstream file(kModelDir + "/config.json");
  const nlohmann::json good = nlohmann::json::parse(file);
  const auto load_with = [&](const char* field, const nlohmann::json& value) {
    nlohmann::json config = good;
    config[field] = value;
    std::ofstream(dir / "config.json") << config;
    return TinyLm::Load(dir.string()).status();
  };
  EXPECT_THAT(load_with("intermediate_size", 680),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       {"model.layers.0.mlp.gate_proj.weight", "[688, 256]", "[680, 256]"}));
  EXPECT_THAT(load_with("num_hidden_layers", 5),
              StatusIs(absl::StatusCode::kInvalidArgument, {"model.layers.4", "no such tensor"}));
  EXPECT_THAT(load_with("vocab_size", 257),
              StatusIs(absl::StatusCode::kInvalidArgument, {"vocab_size", "257", "256"}));
  EXPECT_THAT(load_with("num_key_value_heads", 3),
              StatusIs(absl::StatusCode::kInvalidArgument, {"num_attention_heads", "4", "3"}));
  EXPECT_THAT(load_with("rope_theta", "big"),
              StatusIs(absl::StatusCode::kInvalidArgument, {"rope_theta"}));
  SKETCHKV_EXPECT_OK(load_with("rms_norm_eps", 1e-5));
  std::filesystem::remove_all(dir);
}

// Attention of one query over `tokens`, in double, straight from the formula.
struct Expected {
  std::vector<double> out;
  double lse;
};
Expected Attention(const float* query, const std::vector<float>& keys,
                   const std::vector<float>& values, size_t head, size_t heads, size_t dim,
                   size_t tokens) {
  Expected expected{std::vector<double>(dim, 0.0), 0.0};
  double sum = 0.0;
  for (size_t t = 0; t < tokens; ++t) {
    double logit = 0.0;
    const size_t row = (t * heads + head) * dim;
    for (size_t c = 0; c < dim; ++c) logit += double{query[c]} * keys[row + c];
    const double weight = std::exp(logit / std::sqrt(static_cast<double>(dim)));
    sum += weight;
    for (size_t c = 0; c < dim; ++c) expected.out[c] += weight * values[row + c];
  }
  for (double& x : expected.out) x /= sum;
  expected.lse = std::log(sum);
  return expected;
}

TEST(LocalKvTest, AttendsAsTheFormulaSays) {
  const KvShape shape{.num_layers = 2, .query_heads = 6, .kv_heads = 2, .head_dim = 24};
  const size_t tokens = 45, queries = 40;
  std::mt19937 random(7);
  std::normal_distribution<float> normal;
  const auto draw = [&](size_t n) {
    std::vector<float> numbers(n);
    for (float& x : numbers) x = normal(random);
    return numbers;
  };
  const std::vector<float> keys = draw(tokens * 2 * 24), values = draw(tokens * 2 * 24);
  const std::vector<float> q = draw(queries * 6 * 24);
  LocalKv kv(shape, 64, CacheRounding::kNone);
  kv.Append(1, keys, values);
  EXPECT_EQ(kv.num_tokens(0), 0u);
  EXPECT_EQ(kv.num_tokens(1), tokens);
  std::vector<float> out(q.size()), lse(queries * 6), causal_out(q.size()), causal_lse(lse.size());
  SKETCHKV_ASSERT_OK(kv.Attend(1, q, out, lse));
  kv.AttendCausal(1, 5, q, causal_out, causal_lse);
  for (size_t row = 0; row < queries * 6; ++row) {
    const size_t seen = 5 + row / 6 + 1, kv_head = row % 6 / 3;
    const Expected full = Attention(&q[row * 24], keys, values, kv_head, 2, 24, tokens);
    const Expected causal = Attention(&q[row * 24], keys, values, kv_head, 2, 24, seen);
    EXPECT_NEAR(lse[row], full.lse, 1e-5);
    EXPECT_NEAR(causal_lse[row], causal.lse, 1e-5);
    for (size_t c = 0; c < 24; ++c) {
      EXPECT_NEAR(out[row * 24 + c], full.out[c], 1e-5);
      EXPECT_NEAR(causal_out[row * 24 + c], causal.out[c], 1e-5);
    }
  }
  // Layer 0 holds nothing yet.
  SKETCHKV_ASSERT_OK(kv.Attend(0, q, out, lse));
  EXPECT_EQ(out, std::vector<float>(out.size(), 0.0f));
  EXPECT_EQ(lse, std::vector<float>(lse.size(), -std::numeric_limits<float>::infinity()));
}

}  // namespace
}  // namespace sketchkv::example
