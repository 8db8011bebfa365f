// What `tune` is made of, each part against an obvious one: allotment, axes, choice, split,
// grammar.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <functional>
#include <limits>
#include <map>
#include <numeric>
#include <random>

#include "client/cpp/cli/profile_spec.h"
#include "client/cpp/tune/basis_maker.h"
#include "client/cpp/tune/bit_allotment.h"
#include "client/cpp/tune/candidates.h"
#include "client/cpp/tune/chooser.h"
#include "client/cpp/tune/parallel.h"
#include "client/cpp/tune/profile_request.h"
#include "client/cpp/tune/samples.h"
#include "client/cpp/tune/spectrum.h"
#include "tests/testing/status_matchers.h"

namespace sketchkv::tune {
namespace {

using Bits = std::vector<uint8_t>;

double Distortion(const std::vector<double>& importance, const Bits& bits) {
  double sum = 0;
  for (size_t i = 0; i < importance.size(); ++i) {
    sum += importance[i] * kDistortion[i / 32 < bits.size() ? bits[i / 32] : 0];
  }
  return sum;
}

uint32_t RowBits(RowKind kind, size_t dim, const Bits& bits) {
  uint32_t sum = 0;
  for (size_t g = 0; g < bits.size(); ++g) {
    sum += GroupRowBits(kind, static_cast<uint32_t>(std::min<size_t>(32, dim - g * 32)), bits[g]);
  }
  return sum;
}

// Calls visit with every allotment of `groups` groups.
void VisitAll(size_t groups, const std::function<void(const Bits&)>& visit, Bits prefix = {}) {
  visit(prefix);
  if (prefix.size() == groups) return;
  const uint8_t most = prefix.empty() ? 4 : prefix.back();
  for (uint8_t bits = 1; bits <= most; ++bits) {
    Bits next = prefix;
    next.push_back(bits);
    VisitAll(groups, visit, next);
  }
}

TEST(BitAllotmentTest, IsTheBestOfAllThatFit) {
  std::mt19937 random(5);
  for (const size_t dim : {16u, 40u, 64u, 80u, 128u, 192u}) {
    for (const RowKind kind : {RowKind::kKeys, RowKind::kValues}) {
      std::vector<double> importance(dim);
      for (double& x : importance) x = std::exp(std::normal_distribution<double>(0, 3)(random));
      std::sort(importance.rbegin(), importance.rend());
      std::map<uint32_t, double> best;
      VisitAll((dim + 31) / 32, [&](const Bits& bits) {
        const uint32_t row_bits = RowBits(kind, dim, bits);
        const auto [it, first] = best.emplace(row_bits, Distortion(importance, bits));
        if (!first) it->second = std::min(it->second, Distortion(importance, bits));
      });
      best.erase(0);
      for (const auto& [row_bits, distortion] : best) {
        const auto bits = AllotBits(importance, kind, row_bits);
        const uint32_t most = RowBits(kind, dim, Bits((dim + 31) / 32, 4));
        if (row_bits > most) {  // three bits of a short group in place of four
          EXPECT_FALSE(bits.has_value());
          continue;
        }
        ASSERT_TRUE(bits.has_value()) << dim << " " << row_bits;
        EXPECT_EQ(RowBits(kind, dim, *bits), row_bits);
        EXPECT_TRUE(std::is_sorted(bits->rbegin(), bits->rend()));
        EXPECT_NEAR(Distortion(importance, *bits) / distortion, 1, 1e-9) << dim << " " << row_bits;
      }
      for (const uint32_t row_bits : PossibleRowBits(kind, static_cast<uint32_t>(dim))) {
        EXPECT_EQ(best.count(row_bits), 1u) << dim << " " << row_bits;
      }
    }
  }
}

TEST(BitAllotmentTest, NoAllotmentOfOtherSizes) {
  const std::vector<double> importance(64, 1.0);
  for (const uint32_t row_bits : {0u, 31u, 33u, 288u}) {
    EXPECT_FALSE(AllotBits(importance, RowKind::kKeys, row_bits).has_value()) << row_bits;
  }
  EXPECT_EQ(AllotBits(importance, RowKind::kKeys, 256), (Bits{4, 4}));
}

// Rows of covariance `variances` along the axes of a rotation by pairs of channels, about `mean`.
std::vector<float> Rows(const std::vector<double>& variances, double mean, size_t count,
                        uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<double> normal;
  const size_t dim = variances.size();
  std::vector<float> rows(count * dim);
  for (size_t r = 0; r < count; ++r) {
    for (size_t c = 0; c < dim; c += 2) {
      const double a = std::sqrt(variances[c]) * normal(random);
      const double b = std::sqrt(variances[c + 1]) * normal(random);
      rows[r * dim + c] = static_cast<float>(mean + (a - b) / std::sqrt(2));
      rows[r * dim + c + 1] = static_cast<float>(mean + (a + b) / std::sqrt(2));
    }
  }
  return rows;
}

Moments MomentsOf(const std::vector<float>& rows, uint32_t dim) {
  Moments moments(dim);
  const size_t half = rows.size() / 2 / dim * dim;  // in two pieces, as samples come
  moments.Add(std::span(rows).first(half));
  moments.Add(std::span(rows).subspan(half));
  return moments;
}

TEST(SpectrumTest, FindsPlantedAxes) {
  const std::vector<double> variances = {4, 1e-4, 1, 1e-4, 0.25, 1e-4};
  const Spectrum found = ValueSpectrum(MomentsOf(Rows(variances, 30, 20000, 1), 6));
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_NEAR(found.variances[i] / variances[2 * i], 1, 0.05);
    for (size_t c = 0; c < 6; ++c) {
      const double wanted = c / 2 == i ? 1 / std::sqrt(2) : 0;
      EXPECT_NEAR(std::fabs(found.axes[i * 6 + c]), wanted, 0.02) << i << " " << c;
    }
  }
  for (const float mean : found.mean) EXPECT_NEAR(mean, 30, 0.05);
  EXPECT_EQ(found.importance, found.variances);
}

TEST(SpectrumTest, QueriesMakeKeyAxesImportant) {
  const std::vector<double> variances = {1, 1e-4, 0.5, 1e-4};
  const Moments keys = MomentsOf(Rows(variances, 0, 20000, 2), 4);
  // Queries look along the second pair ten times as far.
  const Moments queries = MomentsOf(Rows({1e-2, 1e-2, 1, 1}, 0, 20000, 3), 4);
  const Spectrum found = KeySpectrum(keys, queries);
  EXPECT_NEAR(found.variances[0], 0.5, 0.05);
  EXPECT_NEAR(found.importance[0], 0.5, 0.05);
  EXPECT_NEAR(found.importance[1], 1 * 0.1, 0.01);
}

TEST(SpectrumTest, OutliersAreTheChannelsOfMostEnergyAboutTheMean) {
  std::vector<float> rows = Rows(std::vector<double>(16, 1.0), 5, 4000, 4);
  for (size_t i = 0; i < rows.size(); ++i) {
    if (i % 16 == 11 || i % 16 == 2) rows[i] = 5 + 10 * (rows[i] - 5);
    if (i % 16 == 7) rows[i] += 1000;  // a mean is no energy about it
  }
  const Spectrum found = ValueSpectrum(MomentsOf(rows, 16));
  EXPECT_EQ(OutlierChannels(found, 2, true), (std::vector<uint32_t>{2, 11}));
  EXPECT_EQ(OutlierChannels(found, 1, false), std::vector<uint32_t>{7}) << "but about zero it is";
  EXPECT_NEAR(OutlierRatio(found), 100, 10);
}

TEST(BasisMakerTest, IsOrthonormalAndOfTheRowBitsAsked) {
  std::vector<double> variances(80);
  for (size_t i = 0; i < 80; ++i) variances[i] = std::exp(-0.1 * static_cast<double>(i));
  const std::vector<float> rows = Rows(variances, 1, 5000, 6);
  const Spectrum spectrum = ValueSpectrum(MomentsOf(rows, 80));
  for (const RowKind kind : {RowKind::kKeys, RowKind::kValues}) {
    for (const uint32_t row_bits : PossibleRowBits(kind, 80)) {
      SKETCHKV_ASSERT_OK_AND_ASSIGN(const Basis basis, MakeBasis(spectrum, kind, row_bits, 1));
      EXPECT_EQ(kind == RowKind::kKeys ? KeyRowBits(basis, 80) : ValueRowBits(basis, 80), row_bits);
      const size_t count = basis.rows.size() / 80;
      EXPECT_EQ(count, std::min<size_t>(80, basis.group_bits.size() * 32));
      KvLayout layout = {
          .num_layers = 1, .num_kv_heads = 1, .head_dim = 80, .value_dim = 80, .block_tokens = 16};
      EXPECT_THAT(ModelTables::Create(layout, {HeadTable{.key_basis = basis}}), IsOk());
    }
  }
  EXPECT_THAT(MakeBasis(spectrum, RowKind::kKeys, 100, 1),
              StatusIs(absl::StatusCode::kInvalidArgument, {"key_row_bits is 100", "96 or 128"}));
  EXPECT_THAT(MakeBasis(spectrum, RowKind::kValues, 10000, 1),
              StatusIs(absl::StatusCode::kInvalidArgument, {"value_row_bits is 10000"}));
}

TEST(BasisMakerTest, GroupRmsIsThatOfTheSampleAndEqualAmongCoordinates) {
  std::vector<double> variances(64);
  for (size_t i = 0; i < 64; ++i) variances[i] = i < 32 ? 8.0 + static_cast<double>(i) : 0.01;
  const std::vector<float> rows = Rows(variances, 2, 20000, 7);
  const Spectrum spectrum = ValueSpectrum(MomentsOf(rows, 64));
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const Basis basis, MakeBasis(spectrum, RowKind::kKeys, 160, 1));
  ASSERT_EQ(basis.group_bits, (Bits{4, 1}));
  for (size_t i = 0; i < 64; ++i) {
    double squares = 0;
    for (size_t r = 0; r < 20000; ++r) {
      double y = 0;
      for (size_t c = 0; c < 64; ++c) {
        y += basis.rows[i * 64 + c] * (rows[r * 64 + c] - spectrum.mean[c]);
      }
      squares += y * y / 20000;
    }
    const double rms = basis.group_rms[i / 32];
    EXPECT_NEAR(std::sqrt(squares) / rms, 1, i < 32 ? 0.25 : 0.02) << i;  // 8 to 40 apart before
  }
}

TEST(BasisMakerTest, WorksOnFewerRowsThanDims) {
  for (const size_t count : {0u, 1u, 10u}) {
    const std::vector<float> rows = Rows(std::vector<double>(64, 1.0), 1, count, 8);
    const Spectrum spectrum = ValueSpectrum(MomentsOf(rows, 64));
    SKETCHKV_ASSERT_OK_AND_ASSIGN(const Basis basis, MakeBasis(spectrum, RowKind::kKeys, 128, 1));
    KvLayout layout = {
        .num_layers = 1, .num_kv_heads = 1, .head_dim = 64, .value_dim = 64, .block_tokens = 16};
    EXPECT_THAT(ModelTables::Create(layout, {HeadTable{.key_basis = basis}}), IsOk()) << count;
  }
}

TEST(ChooserTest, FewestBitsWithinTheError) {
  const std::vector<LayerOptions> layers = {{{4, 0.1}, {2, 0.3}, {3, 0.2}, {3, 0.15}},
                                            {{2, 0.2}, {5, 0.1}}};
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const std::vector<size_t> choice, FewestBits(layers, 0.2));
  EXPECT_EQ(choice, (std::vector<size_t>{3, 0}));
  EXPECT_THAT(FewestBits(layers, 0.05),
              StatusIs(absl::StatusCode::kFailedPrecondition, {"0.05", "layer 0", "0.1", "4.00"}));
}

// An error that is no number meets no target, and does not keep the search going for ever.
TEST(ChooserTest, ErrorsThatAreNoNumbersAreNeverChosen) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const std::vector<LayerOptions> layers = {{{2, nan}, {3, 0.2}}, {{2, 0.3}, {3, nan}, {4, 0.1}}};
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const std::vector<size_t> fewest, FewestBits(layers, 0.3));
  EXPECT_EQ(fewest, (std::vector<size_t>{1, 0}));
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const std::vector<size_t> least, LeastError(layers, 4));
  EXPECT_EQ(least[1], 2u);
}

TEST(ChooserTest, LeastErrorIsNearTheBestOfAllChoices) {
  std::mt19937 random(9);
  std::uniform_real_distribution<double> uniform(0, 1);
  for (int round = 0; round < 50; ++round) {
    std::vector<LayerOptions> layers(4);
    for (LayerOptions& options : layers) {
      const double hard = 0.1 + uniform(random);
      for (int bits = 1; bits <= 6; ++bits) {
        options.push_back({double(bits), hard * std::exp2(-bits) * (1 + 0.2 * uniform(random))});
      }
    }
    const auto sums = [&](const std::vector<size_t>& choice) {
      Option sum;
      for (size_t l = 0; l < 4; ++l) {
        sum.bits += layers[l][choice[l]].bits;
        sum.error += layers[l][choice[l]].error * layers[l][choice[l]].error;
      }
      return sum;
    };
    double best = 1e9;
    for (size_t code = 0; code < 6 * 6 * 6 * 6; ++code) {
      const Option sum = sums({code % 6, code / 6 % 6, code / 36 % 6, code / 216});
      if (sum.bits <= 12) best = std::min(best, sum.error);
    }
    SKETCHKV_ASSERT_OK_AND_ASSIGN(const std::vector<size_t> choice, LeastError(layers, 3));
    EXPECT_LE(sums(choice).bits, 12);
    EXPECT_LE(sums(choice).error, best * 1.1) << round;
  }
}

TEST(ChooserTest, WhatIsLeftIsSpentWhereTheBestStepDoesNotFit) {
  const std::vector<LayerOptions> layers = {{{1, 0.5}, {4, 0.1}}, {{1, 0.4}, {2, 0.35}}};
  SKETCHKV_ASSERT_OK_AND_ASSIGN(std::vector<size_t> choice, LeastError(layers, 1.5));
  EXPECT_EQ(choice, (std::vector<size_t>{0, 1}));
  SKETCHKV_ASSERT_OK_AND_ASSIGN(choice, LeastError(layers, 2.5));
  EXPECT_EQ(choice, (std::vector<size_t>{1, 0}));
}

TEST(ChooserTest, TargetBitsBelowTheCheapest) {
  const std::vector<LayerOptions> layers = {{{2, 0.3}, {3, 0.2}}, {{4, 0.2}}};
  EXPECT_THAT(LeastError(layers, 2.5),
              StatusIs(absl::StatusCode::kFailedPrecondition, {"2.5", "3"}));
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const std::vector<size_t> choice, LeastError(layers, 3));
  EXPECT_EQ(choice, (std::vector<size_t>{0, 0}));
}

TEST(SplitTest, HoldsOutWholeSequencesWhereItCan) {
  const std::vector<TokenRange> four = {{0, 100}, {100, 200}, {200, 300}, {300, 400}};
  Split split = SplitSamples(four, 0.25);
  EXPECT_EQ(split.calibration, (std::vector<TokenRange>{{0, 100}, {100, 200}, {200, 300}}));
  EXPECT_EQ(split.held_out, (std::vector<TokenRange>{{300, 400}}));
  split = SplitSamples(four, 0.3);
  EXPECT_EQ(split.held_out, (std::vector<TokenRange>{{300, 400}}));
  split = SplitSamples(four, 0.1);  // a whole sequence would be over twice that
  EXPECT_EQ(split.held_out, (std::vector<TokenRange>{{360, 400}}));
  EXPECT_EQ(split.calibration.back(), (TokenRange{300, 360}));
  const std::vector<TokenRange> one = {{0, 1000}};
  split = SplitSamples(one, 0.25);
  EXPECT_EQ(split.calibration, (std::vector<TokenRange>{{0, 750}}));
  EXPECT_EQ(split.held_out, (std::vector<TokenRange>{{750, 1000}}));
}

TEST(CandidatesTest, GridOfPlanesAndLadderOfKlt) {
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const CandidateSet set, DefaultCandidates(128, 64));
  EXPECT_EQ(set.candidates.size(), 9u + 6u * 6u);
  EXPECT_EQ(set.encodings.size(), 3u + 6u);
  EXPECT_EQ(set.candidates[5].profile, "qjl3p:center=table,value_bits=4");
  for (const Candidate& candidate : set.candidates) {
    const Encoding& keys = set.encodings[candidate.keys_of];
    const Encoding& values = set.encodings[candidate.values_of];
    EXPECT_EQ(candidate.encoding.request.name, keys.request.name);
    EXPECT_EQ(candidate.encoding.key_row_bits, keys.key_row_bits);
    EXPECT_EQ(candidate.encoding.value_row_bits, values.value_row_bits);
    EXPECT_EQ(candidate.encoding.request.value_bits, values.request.value_bits);
    EXPECT_EQ(candidate.encoding.request.centering.has_value(), keys.request.name != "klt");
  }
  EXPECT_EQ(set.candidates.back().encoding.key_row_bits, 512u);
  EXPECT_EQ(set.candidates.back().encoding.value_row_bits, 256u);
}

TEST(CandidatesTest, ThoseAskedForAndTheirLayers) {
  const std::vector<std::string> texts = {"qjl:layers=1+2,value_bits=4", "klt:value_bits=16"};
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const CandidateSet set, CandidatesOf(texts, 64, 64));
  ASSERT_EQ(set.candidates.size(), 7u);
  EXPECT_EQ(set.candidates[0].profile, "qjl:value_bits=4");
  EXPECT_FALSE(set.candidates[0].Covers(0));
  EXPECT_TRUE(set.candidates[0].Covers(2));
  EXPECT_FALSE(set.candidates[0].Covers(3));
  EXPECT_TRUE(set.candidates[1].Covers(3));
  EXPECT_EQ(set.candidates[6].encoding.value_row_bits, 0u);
  const std::vector<std::string> mixed = {"qjl3p:values=basis"};
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const CandidateSet sizes, CandidatesOf(mixed, 64, 64));
  ASSERT_EQ(sizes.candidates.size(), 6u);
  EXPECT_EQ(sizes.candidates[0].encoding.key_row_bits, 0u);
  EXPECT_EQ(sizes.candidates[0].encoding.value_row_bits, 64u);
  const std::vector<std::string> bad = {"qjl:nothing=3"};
  EXPECT_THAT(CandidatesOf(bad, 64, 64), StatusIs(absl::StatusCode::kInvalidArgument, {"nothing"}));
  EXPECT_THAT(FixedCandidate("qjl", 64, 64), StatusIs(absl::StatusCode::kInvalidArgument, {"qjl"}));
}

TEST(CandidatesTest, EqualNeighboursAreOneRange) {
  EXPECT_EQ(
      ByLayerRange(std::vector<std::string>{"klt", "klt", "qjl:seed=1", "klt"}),
      (std::vector<std::string>{"klt:layers=0+2", "qjl:layers=2+1,seed=1", "klt:layers=3+1"}));
}

TEST(ProfileRequestTest, EveryKnobReachesTheCodec) {
  SKETCHKV_ASSERT_OK_AND_ASSIGN(
      const ProfileSpec spec,
      cli::ParseProfileSpec(
          "qjl2p:layers=1+2,sign_bits=96,projection=orthogonal,scale=least_squares,center=block,"
          "outliers=3,outlier_source=table,outlier_sign_bits=64,values=minmax,"
          "value_scale=least_squares,value_bits=8,value_group_size=48,seed=9"));
  const ProfileRequest request = RequestOf(spec);
  EXPECT_EQ(request.name, "qjl2p");
  EXPECT_EQ(request.sign_bits, 96u);
  EXPECT_EQ(request.projection, Projection::kOrthogonal);
  EXPECT_EQ(request.scale_rule, ScaleRule::kLeastSquares);
  EXPECT_EQ(request.centering, Centering::kBlock);
  EXPECT_EQ(request.num_outliers, 3u);
  EXPECT_EQ(request.outlier_source, OutlierSource::kTable);
  EXPECT_EQ(request.outlier_sign_bits, 64u);
  EXPECT_EQ(request.value_codec, ValueCodec::kMinMax);
  EXPECT_EQ(request.value_scale_rule, ScaleRule::kLeastSquares);
  EXPECT_EQ(request.value_bits, 8u);
  EXPECT_EQ(request.value_group_size, 48u);
  EXPECT_EQ(request.seed, 9u);
}

TEST(ProfileRequestTest, TextsCoverEachLayerOnce) {
  const KvLayout layout = {
      .num_layers = 4, .num_kv_heads = 1, .head_dim = 64, .value_dim = 64, .block_tokens = 16};
  const auto resolve = [&layout](std::vector<std::string> texts) {
    return ResolveTexts(texts, layout, nullptr);
  };
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const std::vector<CodecProfile> profiles,
                                resolve({"raw:layers=2", "qjl3p:layers=0+2,center=block"}));
  EXPECT_EQ(profiles[1].name, "qjl3p");
  EXPECT_EQ(profiles[1].centering, Centering::kBlock);
  EXPECT_EQ(profiles[3].name, "raw");
  EXPECT_THAT(resolve({"raw:layers=0+3"}),
              StatusIs(absl::StatusCode::kInvalidArgument, {"layer 3", "4"}));
  EXPECT_THAT(resolve({"raw", "qjl:layers=3+1"}),
              StatusIs(absl::StatusCode::kInvalidArgument, {"second", "layer 3"}));
  EXPECT_THAT(resolve({"raw:layers=2+3"}),
              StatusIs(absl::StatusCode::kInvalidArgument, {"2 to 5", "4"}));
}

TEST(RunAllTest, DoesEverythingOnceAndStopsAtTheFirstError) {
  for (const uint32_t threads : {1u, 4u}) {
    std::vector<int> done(100);
    uint64_t last = 0;
    SKETCHKV_EXPECT_OK(RunAll(
        100, threads, [&last](uint64_t now, uint64_t) { EXPECT_EQ(now, ++last); },
        [&done](size_t i) {
          ++done[i];
          return absl::OkStatus();
        }));
    EXPECT_EQ(done, std::vector<int>(100, 1));
    EXPECT_EQ(last, 100u);
    std::atomic<int> begun = 0;
    const absl::Status status = RunAll(1000, threads, {}, [&begun](size_t i) {
      ++begun;
      return i == 5 ? absl::InternalError("five") : absl::OkStatus();
    });
    EXPECT_THAT(status, StatusIs(absl::StatusCode::kInternal, {"five"}));
    if (threads == 1) {
      EXPECT_EQ(begun, 6);
    }
  }
}

}  // namespace
}  // namespace sketchkv::tune
