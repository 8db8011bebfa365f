#include <cuda_fp16.h>

#include <algorithm>
#include <cmath>
#include <ostream>
#include <string>

#include "tests/gpu/gpu_cells.h"

// Scores and attention on the GPU against sums in double over what the CPU decodes.
namespace sketchkv::testing {
namespace {

using cuda::kDim;

// Of queries rounded to 15 bits and weights of 11; of outputs, as a share of the largest number.
constexpr double kScoreError = 1e-3;
constexpr double kOutputError = 1e-3;

struct Case {
  std::string name;
  ProfileRequest request;
  uint32_t block_tokens;
  std::vector<uint32_t> tokens;  // of each sequence
  uint32_t begin = 0;            // the first token that is attended
  uint32_t num_queries = 4;
  double magnitude = 1.0;
  float softcap = 0.0f;
  cuda::ThreadBlocks most = {100};
};

void PrintTo(const Case& c, std::ostream* out) { *out << c.name; }

ProfileRequest WithValues(const std::string& name, ValueCodec codec) {
  ProfileRequest request = Named(name);
  request.value_codec = codec;
  return request;
}

std::vector<Case> Cases() {
  const std::vector<uint32_t> odd = {1, 15, 16, 17, 63, 64, 65, 200, 1000};
  std::vector<Case> cases;
  for (const std::string name : {"qjl", "qjl2p", "qjl3p"}) {
    for (const auto codec : {ValueCodec::kRotated, ValueCodec::kMinMax}) {
      const std::string full = name + (codec == ValueCodec::kRotated ? "_rotated" : "_min_max");
      for (const uint32_t block_tokens : {16, 64}) {
        cases.push_back({full + "_" + std::to_string(block_tokens), WithValues(name, codec),
                         block_tokens, odd});
      }
    }
  }
  cases.push_back({"one_query", Named("qjl3p"), 64, odd, 0, 1});
  cases.push_back({"eight_queries", Named("qjl"), 32, odd, 0, 8});
  cases.push_back({"later_tokens", Named("qjl3p"), 16, {500, 78, 4000}, 77});
  cases.push_back({"large_blocks", Named("qjl3p"), 1024, {3000, 10}});
  cases.push_back({"no_tokens", Named("qjl"), 16, {40, 0, 16}});
  cases.push_back({"many_shares", Named("qjl3p"), 64, {20000, 1}, 0, 8, 1.0, 0.0f, {4000}});
  cases.push_back({"one_share", Named("qjl"), 64, {3000, 1000}, 0, 4, 1.0, 0.0f, {1}});
  cases.push_back({"shares_of_two_heads", Named("qjl"), 64, {3000, 700}, 0, 4, 1.0, 0.0f, {5}});
  cases.push_back({"wide", Named("qjl"), 64, odd, 0, 4, 1.0, 0.0f, {300, 100}});
  cases.push_back({"wide_long", Named("qjl3p"), 64, {20000, 1}, 0, 8, 1.0, 0.0f, {396, 132}});
  cases.push_back({"wide_no_tokens", Named("qjl2p"), 16, {40, 0, 16}, 0, 1, 1.0, 0.0f, {300, 100}});
  cases.push_back(
      {"wide_later", Named("qjl3p"), 16, {500, 78, 4000}, 77, 4, 3.0, 5.0f, {300, 100}});
  cases.push_back({"large_numbers", Named("qjl3p"), 64, odd, 0, 4, 1e15});
  cases.push_back({"small_numbers", Named("qjl"), 64, odd, 0, 4, 1e-15});
  cases.push_back({"softcap", Named("qjl3p"), 64, odd, 0, 4, 3.0, 5.0f});
  return cases;
}

class GpuAttendTest : public ::testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    SKETCHKV_NEED_GPU();
    const Case& c = GetParam();
    chains_ = std::make_unique<GpuChains>(Resolve(c.request, Layout(kDim, kDim, c.block_tokens)),
                                          kHeads, c.block_tokens, c.tokens, c.magnitude);
    queries_ =
        RandomQueries(static_cast<uint32_t>(c.tokens.size()) * kHeads * c.num_queries, kDim, 7);
    // Queries as small as keys are large, so that logits are what they usually are.
    for (float& x : queries_) x = static_cast<float>(x * 3 / c.magnitude);
  }

  const float* Query(uint32_t sequence, uint32_t head, uint32_t q) const {
    return queries_.data() + Row(sequence, head, q) * kDim;
  }
  size_t Row(uint32_t sequence, uint32_t head, uint32_t q) const {
    return (size_t{sequence} * kHeads + head) * GetParam().num_queries + q;
  }
  // <query, key of token>, and the largest it could be.
  std::pair<double, double> Product(const float* query, const std::vector<double>& key) const {
    double sum = 0, query_square = 0, key_square = 0;
    for (uint32_t i = 0; i < kDim; ++i) {
      sum += query[i] * key[i];
      query_square += double{query[i]} * query[i];
      key_square += key[i] * key[i];
    }
    return {sum, std::sqrt(query_square * key_square)};
  }

  static constexpr uint32_t kHeads = 3;
  std::unique_ptr<GpuChains> chains_;
  std::vector<float> queries_;
};

TEST_P(GpuAttendTest, ScoresAreProductsWithDecodedKeys) {
  const Case& c = GetParam();
  uint32_t longest = 0;
  for (const uint32_t n : c.tokens) longest = std::max(longest, n);
  const size_t stride = (longest + 127) / 64 * 64;
  DeviceArray<float> queries{std::span<const float>(queries_)};
  DeviceArray<float> scores(queries_.size() / kDim * stride);
  scores.Fill(0xFF);
  cuda::ScoreArgs args{};
  args.chain = chains_->Args(c.begin, {c.most.narrow});
  args.queries = queries.data();
  args.num_queries = c.num_queries;
  args.scores = scores.data();
  args.stride = stride;
  CheckCuda(cuda::LaunchScore(chains_->plan(), args, nullptr));
  CheckCuda(cudaDeviceSynchronize());
  const std::vector<float> result = scores.ToHost();
  double worst = 0;
  for (uint32_t s = 0; s < c.tokens.size(); ++s) {
    const GpuChains::Chain& chain = chains_->chains()[s];
    const uint32_t begin = std::min(c.begin, chain.num_tokens);
    for (uint32_t head = 0; head < kHeads; ++head) {
      for (uint32_t q = 0; q < c.num_queries; ++q) {
        for (uint32_t t = begin; t < chain.num_tokens; ++t) {
          const float score = result[Row(s, head, q) * stride + t - begin / 64 * 64];
          const auto [expected, largest] = Product(Query(s, head, q), chain.keys[head][t]);
          ASSERT_LE(std::fabs(score - expected), kScoreError * largest + 1e-30)
              << "sequence " << s << " head " << head << " query " << q << " token " << t << ": "
              << score << ", must be " << expected;
          if (largest > 0) worst = std::max(worst, std::fabs(score - expected) / largest);
        }
      }
    }
  }
  RecordProperty("worst", std::to_string(worst));
}

TEST_P(GpuAttendTest, HalvesAreScoresRounded) {
  const Case& c = GetParam();
  const size_t stride = (*std::max_element(c.tokens.begin(), c.tokens.end()) + 127) / 64 * 64;
  DeviceArray<float> queries{std::span<const float>(queries_)};
  DeviceArray<float> scores(queries_.size() / kDim * stride);
  DeviceArray<uint16_t> halves(scores.size());
  scores.Fill(0xFF);
  halves.Fill(0xFF);
  cuda::ScoreArgs args{};
  args.chain = chains_->Args(c.begin, {c.most.narrow});
  args.queries = queries.data();
  args.num_queries = c.num_queries;
  args.scores = scores.data();
  args.stride = stride;
  CheckCuda(cuda::LaunchScore(chains_->plan(), args, nullptr));
  args.scores = halves.data();
  args.as_halves = true;
  CheckCuda(cuda::LaunchScore(chains_->plan(), args, nullptr));
  CheckCuda(cudaDeviceSynchronize());
  const std::vector<float> exact = scores.ToHost();
  const std::vector<uint16_t> rounded = halves.ToHost();
  for (size_t i = 0; i < exact.size(); ++i) {
    if (std::isnan(exact[i])) {
      ASSERT_EQ(rounded[i], 0xFFFF) << i << " is not to be written";
    } else {
      ASSERT_EQ(rounded[i], __half_as_ushort(__float2half_rn(exact[i]))) << i << " of " << exact[i];
    }
  }
}

TEST_P(GpuAttendTest, AttentionIsThatOverDecodedCells) {
  const Case& c = GetParam();
  const float scale = 0.08838834764f;
  DeviceArray<float> queries{std::span<const float>(queries_)};
  DeviceArray<float> partials((c.most.narrow + c.tokens.size() * kHeads) * cuda::kPartialFloats);
  DeviceArray<uint32_t> arrivals(c.tokens.size() * kHeads);
  DeviceArray<float> out(queries_.size()), lse(queries_.size() / kDim);
  arrivals.Fill(0);
  cuda::AttendArgs args{};
  args.chain = chains_->Args(c.begin, c.most);
  ASSERT_EQ(args.chain.wide, c.most.wide > 0);
  args.queries = queries.data();
  args.num_queries = c.num_queries;
  args.softmax_scale = scale;
  args.logit_softcap = c.softcap;
  args.partials = partials.data();
  args.arrivals = arrivals.data();
  args.out = out.data();
  args.lse = lse.data();
  std::vector<float> first;
  for (int run = 0; run < 2; ++run) {  // the second sees whether the first left arrivals as it must
    partials.Fill(0xFF);
    out.Fill(0xFF);
    lse.Fill(0xFF);
    CheckCuda(cuda::LaunchAttend(chains_->plan(), args, nullptr));
    CheckCuda(cudaDeviceSynchronize());
    if (run == 0) first = out.ToHost();
  }
  const std::vector<float> result = out.ToHost(), log_sums = lse.ToHost();
  ASSERT_EQ(first.size(), result.size());
  EXPECT_EQ(std::memcmp(first.data(), result.data(), first.size() * sizeof(float)), 0)
      << "two runs differ";
  for (uint32_t s = 0; s < c.tokens.size(); ++s) {
    const GpuChains::Chain& chain = chains_->chains()[s];
    for (uint32_t head = 0; head < kHeads; ++head) {
      for (uint32_t q = 0; q < c.num_queries; ++q) {
        std::vector<double> logits;
        double max = -INFINITY, largest_logit = 0;
        for (uint32_t t = std::min(c.begin, chain.num_tokens); t < chain.num_tokens; ++t) {
          const auto [product, most] = Product(Query(s, head, q), chain.keys[head][t]);
          largest_logit = std::max(largest_logit, scale * most);
          double logit = scale * product;
          if (c.softcap > 0) logit = c.softcap * std::tanh(logit / c.softcap);
          logits.push_back(logit);
          max = std::max(max, logit);
        }
        double sum = 0;
        std::vector<double> expected(kDim);
        const size_t begin = chain.num_tokens - logits.size();
        for (size_t i = 0; i < logits.size(); ++i) {
          const double weight = std::exp(logits[i] - max);
          sum += weight;
          for (uint32_t d = 0; d < kDim; ++d) {
            expected[d] += weight * chain.values[head][begin + i][d];
          }
        }
        double largest = 0, worst = 0;
        for (uint32_t d = 0; d < kDim; ++d) {
          if (sum > 0) expected[d] /= sum;
          largest = std::max(largest, std::fabs(expected[d]));
          worst = std::max(worst, std::fabs(expected[d] - result[Row(s, head, q) * kDim + d]));
        }
        // What the error of a score may be as a logit.
        const double slack = 1 + largest_logit;
        EXPECT_LE(worst, kOutputError * slack * largest)
            << "sequence " << s << " head " << head << " query " << q << " of " << logits.size()
            << " tokens";
        const float log_sum = log_sums[Row(s, head, q)];
        if (logits.empty()) {
          EXPECT_EQ(log_sum, -INFINITY);
        } else {
          EXPECT_NEAR(log_sum, max + std::log(sum), kScoreError * slack);
        }
      }
    }
  }
}

TEST_P(GpuAttendTest, QueriesMayBeResultsOfTheLaunchBefore) {
  const Case& c = GetParam();
  DeviceArray<float> queries{std::span<const float>(queries_)};
  DeviceArray<float> partials((c.most.narrow + c.tokens.size() * kHeads) * cuda::kPartialFloats);
  DeviceArray<uint32_t> arrivals(c.tokens.size() * kHeads);
  DeviceArray<float> out(queries_.size()), next(queries_.size()), lse(queries_.size() / kDim);
  arrivals.Fill(0);
  cuda::AttendArgs args{};
  args.chain = chains_->Args(c.begin, c.most);
  ASSERT_EQ(args.chain.wide, c.most.wide > 0);
  args.num_queries = c.num_queries;
  args.softmax_scale = 0.1f;
  args.logit_softcap = c.softcap;
  args.partials = partials.data();
  args.arrivals = arrivals.data();
  args.lse = lse.data();
  const auto run = [&](bool begins_early) {
    out.Fill(0xFF);
    next.Fill(0xFF);
    CheckCuda(cudaDeviceSynchronize());
    args.queries = queries.data();
    args.out = out.data();
    args.begins_early = false;
    CheckCuda(cuda::LaunchAttend(chains_->plan(), args, nullptr));
    args.queries = out.data();
    args.out = next.data();
    args.begins_early = begins_early;
    CheckCuda(cuda::LaunchAttend(chains_->plan(), args, nullptr));
    CheckCuda(cudaDeviceSynchronize());
    return next.ToHost();
  };
  const std::vector<float> expected = run(false), result = run(true);
  EXPECT_EQ(std::memcmp(expected.data(), result.data(), expected.size() * sizeof(float)), 0);
}

INSTANTIATE_TEST_SUITE_P(All, GpuAttendTest, ::testing::ValuesIn(Cases()),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace sketchkv::testing
