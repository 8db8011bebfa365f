// Every profile against the oracle: bytes, decoding, scores, attention. Long, since each comparison
// needs the bounds and the subjects of the others.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "tests/kernels/codec_testing.h"
#include "tests/testing/reference_units.h"
#include "tests/testing/status_matchers.h"

// The scalar kernels against the oracle in double precision, within stated bounds. What other
// instruction sets do is equal to the bit (codec_isa_test.cc).
// Long because each part of a cell has its own expectation, and every profile goes through all.
namespace sketchkv::testing {
namespace {

// Of a stored scale, relative to itself; and the step of those below the normal floats.
constexpr double kScaleRelative = 1.0 / 512 + 1e-5;
constexpr double kScaleAbsolute = 0x1p-134;

double Norm(const std::vector<double>& x) { return std::sqrt(ReferenceDot(x, x)); }

double Largest(const Matrix& rows) {
  double largest = 0;
  for (const auto& row : rows) {
    for (double x : row) largest = std::max(largest, std::fabs(x));
  }
  return largest;
}

class Subject {
 public:
  Subject(const KvLayout& layout, const ProfileRequest& request, uint32_t num_tokens, uint64_t seed,
          double magnitude = 1.0)
      : layout_(layout),
        profile_(Resolve(request, layout)),
        codec_(MakeCodec(layout, profile_, Isa::kScalar)),
        key_rows_(RandomRows(num_tokens, layout.head_dim, layout.key_dtype, seed, 1, magnitude)),
        value_rows_(
            RandomRows(num_tokens, layout.value_dim, layout.value_dtype, seed + 1, 1, magnitude)),
        bytes_(EncodeCell(cell(), key_rows_, value_rows_, num_tokens)),
        keys(key_rows_.Doubles(layout.key_scale)),
        values(value_rows_.Doubles(layout.value_scale)),
        projection(
            ReferenceProjection(profile_, layout.head_dim, codec_->dense_projection(0), table())),
        value_projection(ReferenceValueProjection(profile_, layout.value_dim, table())),
        parsed(ReferenceParse(layout_, profile_, table(), projection, bytes_, num_tokens)) {}

  [[nodiscard]] const CellCodec& cell() const { return codec_->cell(0, 0); }
  [[nodiscard]] const HeadTable& table() const {
    static const HeadTable* const none = new HeadTable();
    return profile_.uses_tables() ? codec_->tables()->at(0, 0) : *none;
  }
  [[nodiscard]] const KvLayout& layout() const { return layout_; }
  [[nodiscard]] const CodecProfile& profile() const { return profile_; }
  [[nodiscard]] std::span<const std::byte> bytes() const { return bytes_; }

 private:
  KvLayout layout_;
  CodecProfile profile_;
  std::unique_ptr<BlockCodec> codec_;
  GuardedRows key_rows_, value_rows_;
  std::vector<std::byte> bytes_;

 public:
  const Matrix keys, values;  // what was encoded
  const Matrix projection, value_projection;
  const ReferenceCell parsed;  // what the bytes say
};

// Signs and scale of one sketch of `key` by the first rows of S. A sign may differ only where the
// projection is within rounding of zero.
void ExpectSketch(const Matrix& s, const std::vector<double>& key, const std::vector<double>& signs,
                  double scale, ScaleRule rule) {
  const double norm = Norm(key);
  const double rounding = 1e-6 * norm * std::sqrt(static_cast<double>(key.size()));
  double dot = 0;
  for (size_t i = 0; i < signs.size(); ++i) {
    const double projection = ReferenceDot(s[i], key);
    dot += std::fabs(projection);
    if (std::fabs(projection) > rounding) {
      ASSERT_EQ(signs[i], projection > 0 ? 1 : -1) << "bit " << i << " of " << projection;
    }
  }
  double wanted = std::sqrt(M_PI / 2) / static_cast<double>(signs.size()) * norm;
  if (rule == ScaleRule::kExact) wanted = norm > 0 ? norm * norm / dot : 0.0;
  ASSERT_NEAR(scale, wanted, wanted * kScaleRelative + kScaleAbsolute);
}

// Whether each of `levels` is the nearest to its coordinate when `unit` is the unit of all, within
// rounding. Bounds lie midway between levels, to four digits.
bool Explains(double unit, const std::vector<ReferenceRun>& runs, bool keys,
              const std::vector<double>& y, const std::vector<double>& levels) {
  for (const ReferenceRun& run : runs) {
    for (uint32_t r = 0; r < run.rows; ++r) {
      const std::vector<double>& own = ReferenceLevels(run, keys, r);
      const double magnitude = std::fabs(y[run.row + r]) / unit;
      const double level = std::fabs(levels[run.row + r]);
      size_t i = own.size() / 2;
      while (std::fabs(own[i] - level) > 1e-6 * own.back()) ++i;
      const bool lowest = i == own.size() / 2;
      if (!lowest && magnitude < 0.999 * (own[i] + own[i - 1]) / 2) return false;
      if (i + 1 < own.size() && magnitude > 1.001 * (own[i] + own[i + 1]) / 2) return false;
    }
  }
  return true;
}

// Codes of the projections `y`: of the units tried one of the best gives them, and the scale
// follows from them. `energy`: |x|^2 of what was projected; row_energy: of a row of S.
void ExpectCodes(const std::vector<ReferenceRun>& runs, bool keys, const std::vector<double>& y,
                 const std::vector<double>& levels, double scale, ScaleRule rule, double energy,
                 double row_energy) {
  double dot = 0, square = 0;
  for (size_t i = 0; i < y.size(); ++i) {
    dot += y[i] * levels[i];
    square += levels[i] * levels[i];
  }
  double wanted = 0;
  if (energy > 0) {
    wanted = rule == ScaleRule::kExact ? energy / dot : dot / (square * row_energy);
  }
  ASSERT_NEAR(scale, wanted, wanted * kScaleRelative + kScaleAbsolute);
  if (energy == 0) return;
  for (size_t i = 0; i < y.size(); ++i) {
    if (std::fabs(y[i]) < 1e-5 * std::sqrt(energy)) continue;
    ASSERT_EQ(levels[i] > 0, y[i] > 0) << "row " << i;
  }
  double best = 0, chosen = 0;
  for (const ReferenceUnit& unit : ReferenceUnits(runs, keys, y)) {
    best = std::max(best, unit.merit);
    if (Explains(unit.unit, runs, keys, y, levels)) chosen = std::max(chosen, unit.merit);
  }
  ASSERT_GT(chosen, 0) << "no unit explains these codes";
  ASSERT_GE(chosen, (1 - 1e-5) * best);
}

std::vector<double> Project(const Matrix& s, const std::vector<double>& x) {
  std::vector<double> y;
  for (const auto& row : s) y.push_back(ReferenceDot(row, x));
  return y;
}

// Of a block's mean: what is stored is the bf16 nearest to it.
void ExpectMean(const Subject& x) {
  if (x.profile().centering != Centering::kBlock) return;
  for (size_t c = 0; c < x.parsed.key_mean.size(); ++c) {
    double mean = 0, size = 0;
    for (const auto& key : x.keys) {
      mean += key[c] / static_cast<double>(x.keys.size());
      size += std::fabs(key[c]) / static_cast<double>(x.keys.size());
    }
    ASSERT_NEAR(x.parsed.key_mean[c], mean, std::fabs(mean) / 256 + 1e-5 * size) << c;
  }
}

void ExpectKeys(const Subject& x) {
  const ReferenceCell& cell = x.parsed;
  if (x.profile().key_codec == KeyCodec::kRaw) {
    ASSERT_EQ(cell.keys, x.keys);
    return;
  }
  ASSERT_NO_FATAL_FAILURE(ExpectMean(x));
  const auto runs = ReferenceKeyRuns(x.profile(), x.layout().head_dim, x.table());
  const bool basis = x.profile().projection == Projection::kBasis;
  for (uint32_t t = 0; t < cell.num_tokens; ++t) {
    std::vector<double> rest = x.keys[t];
    for (size_t c = 0; c < rest.size(); ++c) rest[c] -= cell.key_mean[c];
    const std::vector<double> centered = rest;
    std::vector<double> chosen(rest.size(), 0.0);
    for (uint32_t channel : cell.channels[t]) {
      chosen[channel] = rest[channel];
      rest[channel] = 0;
    }
    SCOPED_TRACE(t);
    // Squares of keys this far below the cell's largest may vanish, and their scale with them.
    if (Norm(rest) < 1e-15 * Largest(x.keys)) {
      ASSERT_LE(cell.key_scales[t], Norm(rest));
      continue;
    }
    if (x.profile().key_codec == KeyCodec::kSketch) {
      ASSERT_NO_FATAL_FAILURE(ExpectSketch(x.projection, rest, cell.key_levels[t],
                                           cell.key_scales[t], x.profile().scale_rule));
    } else {
      const std::vector<double> y = Project(x.projection, rest);
      ASSERT_NO_FATAL_FAILURE(ExpectCodes(runs, true, y, cell.key_levels[t], cell.key_scales[t],
                                          x.profile().scale_rule,
                                          basis ? ReferenceDot(y, y) : ReferenceDot(rest, rest),
                                          basis ? 1.0 : x.layout().head_dim));
    }
    if (x.profile().outlier_method == OutlierMethod::kSketch) {
      ASSERT_NO_FATAL_FAILURE(ExpectSketch(x.projection, chosen, cell.outlier_signs[t],
                                           cell.outlier_scales[t], x.profile().scale_rule));
    } else {
      for (size_t o = 0; o < cell.channels[t].size(); ++o) {
        const uint32_t c = cell.channels[t][o];
        // Half a step, and what the scale's rounding takes from the largest of 127 steps.
        ASSERT_NEAR(cell.keys[t][c], x.keys[t][c],
                    cell.residual_scales[t][o] * (0.5 + 127.0 / 512) + 1e-5 * Norm(centered) +
                        1e-5 * std::fabs(x.keys[t][c]));
      }
    }
  }
}

// The stored channels are those of most energy in their group of tokens (ties within rounding).
void ExpectChannels(const Subject& x) {
  if (x.profile().outlier_source == OutlierSource::kTable) return;
  const uint32_t group_tokens =
      x.profile().outlier_method == OutlierMethod::kSketch ? 32 : x.layout().block_tokens;
  for (uint32_t first = 0; first < x.parsed.num_tokens; first += group_tokens) {
    const uint32_t end = std::min(x.parsed.num_tokens, first + group_tokens);
    std::vector<double> energy(x.layout().head_dim, 0.0);
    for (uint32_t t = first; t < end; ++t) {
      for (uint32_t c = 0; c < energy.size(); ++c) {
        const double k = x.keys[t][c] - x.parsed.key_mean[c];
        energy[c] += k * k;
      }
      ASSERT_EQ(x.parsed.channels[t], x.parsed.channels[first]);
    }
    const auto& channels = x.parsed.channels[first];
    double least_chosen = std::numeric_limits<double>::infinity();
    for (uint32_t c : channels) least_chosen = std::min(least_chosen, energy[c]);
    for (uint32_t c = 0; c < energy.size(); ++c) {
      if (std::find(channels.begin(), channels.end(), c) != channels.end()) continue;
      ASSERT_LE(energy[c], least_chosen * (1 + 1e-5)) << "channel " << c;
    }
  }
}

void ExpectRotatedValues(const Subject& x) {
  const auto runs = ReferenceValueRuns(x.profile(), x.layout().value_dim, x.table());
  const bool basis = x.profile().value_codec == ValueCodec::kBasis;
  for (uint32_t t = 0; t < x.parsed.num_tokens; ++t) {
    std::vector<double> value = x.values[t];
    for (size_t c = 0; basis && c < value.size(); ++c) value[c] -= x.table().value_mean[c];
    SCOPED_TRACE(t);
    if (Norm(value) < 1e-15 * Largest(x.values)) {
      ASSERT_LE(x.parsed.value_scales[t][0], Norm(value));
      continue;
    }
    const std::vector<double> y = Project(x.value_projection, value);
    ASSERT_NO_FATAL_FAILURE(ExpectCodes(runs, false, y, x.parsed.value_levels[t],
                                        x.parsed.value_scales[t][0], x.profile().value_scale_rule,
                                        basis ? ReferenceDot(y, y) : ReferenceDot(value, value),
                                        basis ? 1.0 : x.layout().value_dim));
  }
}

void ExpectValues(const Subject& x) {
  const ReferenceCell& cell = x.parsed;
  if (x.layout().value_source == ValueSource::kKeyPrefix) return;
  if (x.profile().value_codec == ValueCodec::kRaw) {
    ASSERT_EQ(cell.values, x.values);
    return;
  }
  if (x.profile().value_codec != ValueCodec::kMinMax) return ExpectRotatedValues(x);
  const uint32_t group_size = x.profile().value_group_size;
  const double levels = (1 << x.profile().value_bits) - 1;
  for (uint32_t t = 0; t < cell.num_tokens; ++t) {
    for (uint32_t g = 0; g * group_size < x.layout().value_dim; ++g) {
      const auto begin = x.values[t].begin() + g * group_size;
      const auto end = x.values[t].begin() + std::min(x.layout().value_dim, (g + 1) * group_size);
      const double low = *std::min_element(begin, end);
      const double high = *std::max_element(begin, end);
      const double scale = cell.value_scales[t][g];
      const double wanted = std::max((high - low) / levels, std::fabs(low) / 2040);
      ASSERT_NEAR(scale, wanted, wanted * kScaleRelative + kScaleAbsolute);
      // Half a step; half a unit of the zero; at the upper end what the scale's rounding takes.
      const double bound = scale * (0.5001 + 1.0 / 32) + (high - low) / 512 +
                           1e-6 * std::fabs(low) + 2 * kScaleAbsolute;
      for (uint32_t c = g * group_size; c < std::min(x.layout().value_dim, (g + 1) * group_size);
           ++c) {
        ASSERT_NEAR(cell.values[t][c], x.values[t][c], bound) << "token " << t << " channel " << c;
      }
    }
  }
}

// Decoding to fp32 gives what the bytes say.
void ExpectDecode(const Subject& x) {
  const uint32_t n = x.parsed.num_tokens;
  const KvLayout& layout = x.layout();
  std::vector<float> keys(size_t{n} * layout.head_dim);
  std::vector<float> values(size_t{n} * layout.value_dim);
  SKETCHKV_ASSERT_OK(x.cell().Decode(
      x.bytes(), n, DType::kFp32,
      {reinterpret_cast<std::byte*>(keys.data()), layout.head_dim * sizeof(float)}, DType::kFp32,
      {reinterpret_cast<std::byte*>(values.data()), layout.value_dim * sizeof(float)}));
  const double value_bound = 1e-6 * Largest(x.parsed.values) + 1e-44;
  for (uint32_t t = 0; t < n; ++t) {
    const double key_bound = 4e-6 * Norm(x.parsed.keys[t]) + 1e-44;
    for (uint32_t c = 0; c < layout.head_dim; ++c) {
      ASSERT_NEAR(keys[size_t{t} * layout.head_dim + c], x.parsed.keys[t][c], key_bound) << t;
    }
    for (uint32_t c = 0; c < layout.value_dim; ++c) {
      ASSERT_NEAR(values[size_t{t} * layout.value_dim + c], x.parsed.values[t][c], value_bound)
          << t;
    }
  }
}

// What the rounding of a query's tables may add to its score of a key of scale 1: each nibble's
// entries have a step of at most range / 255 + largest range / (255 * 63), and err by half of it. A
// nibble's range is at most the sum of what its coordinates span.
double TableRounding(const Matrix& s, const std::vector<ReferenceRun>& runs,
                     const std::vector<double>& query) {
  double spans = 0, largest = 0;
  for (size_t row = 0; row < s.size(); ++row) {
    double level = 1.0;  // of signs
    for (const ReferenceRun& run : runs) {
      if (row < run.row || row >= run.row + run.rows) continue;
      level = std::max(run.levels.back(), run.bits == 3 ? run.spread_levels.back() : 0.0);
    }
    const double span = 2 * level * std::fabs(ReferenceDot(s[row], query));
    spans += span;
    largest = std::max(largest, span);
  }
  // At most one nibble a coordinate, and four coordinates a nibble.
  const double nibbles = static_cast<double>(s.size());
  return (spans / 255 + nibbles * 4 * largest / (255 * 63)) / 2;
}

// <q, decoded k> is the score.
void ExpectScores(const Subject& x, const std::vector<float>& queries, uint32_t num_queries) {
  const uint32_t n = x.parsed.num_tokens;
  const auto prepared = x.cell().PrepareQueries(queries);
  ASSERT_EQ(prepared->num_queries(), num_queries);
  std::vector<float> scores(size_t{num_queries} * n, std::numeric_limits<float>::quiet_NaN());
  x.cell().Score(x.bytes(), 0, n, *prepared, scores.data(), n);
  const bool raw = x.profile().key_codec == KeyCodec::kRaw;
  const auto runs = x.profile().key_codec == KeyCodec::kCodes
                        ? ReferenceKeyRuns(x.profile(), x.layout().head_dim, x.table())
                        : std::vector<ReferenceRun>();
  for (uint32_t q = 0; q < num_queries; ++q) {
    const auto query = RowOf(queries, q, x.layout().head_dim);
    const double rounding = raw ? 0.0 : TableRounding(x.projection, runs, query);
    for (uint32_t t = 0; t < n; ++t) {
      double bound = 1e-5 * Norm(query) * Norm(x.parsed.keys[t]) + 1e-44;
      if (!raw) bound += x.parsed.key_scales[t] * rounding;
      // A second sketch's query is of fewer channels, in fewer bits.
      if (!x.parsed.outlier_scales.empty()) bound += x.parsed.outlier_scales[t] * rounding;
      ASSERT_NEAR(scores[size_t{q} * n + t], ReferenceDot(query, x.parsed.keys[t]), bound)
          << "query " << q << " token " << t;
    }
  }
}

// The scores of tokens [begin, end), which ExpectScores has checked.
Matrix ScoresOf(const Subject& x, const std::vector<float>& queries, uint32_t num_queries,
                uint32_t begin, uint32_t end) {
  std::vector<float> scores(size_t{num_queries} * (end - begin));
  x.cell().Score(x.bytes(), begin, end, *x.cell().PrepareQueries(queries), scores.data(),
                 end - begin);
  Matrix rows;
  for (uint32_t q = 0; q < num_queries; ++q) rows.push_back(RowOf(scores, q, end - begin));
  return rows;
}

// Of attention's output, relative to the largest value: what is left of the rounding of n weights
// to 1 / 16383 of the largest, or to 1 / 255 with values of two bits (AccuracyTest has how much of
// the codec's error that is).
double WeightBound(const CodecProfile& profile, uint32_t n) {
  if (profile.value_codec == ValueCodec::kRaw) return 4e-6;
  const bool one_digit = profile.value_codec == ValueCodec::kBasis || profile.value_bits <= 2;
  return 3e-5 + (one_digit ? 1.0 / 255 : 1.0 / 16383) * std::sqrt(n);
}

void ExpectAttention(const Subject& x, const std::vector<float>& queries, uint32_t num_queries,
                     uint32_t begin, uint32_t end, const AttentionOptions& options) {
  const auto prepared = x.cell().PrepareQueries(queries);
  AttentionPartial partial = x.cell().NewPartial(num_queries);
  // In two pieces, so that the running maximum moves.
  const uint32_t middle = begin + (end - begin) / 3;
  x.cell().Attend(x.bytes(), begin, middle, *prepared, options, &partial);
  x.cell().Attend(x.bytes(), middle, end, *prepared, options, &partial);
  const uint32_t dim = x.layout().value_dim;
  std::vector<float> out(size_t{num_queries} * dim, 7.0f), lse(num_queries, 7.0f);
  x.cell().Finish(partial, out.data(), lse.data());
  const Matrix scores = ScoresOf(x, queries, num_queries, begin, end);
  const Matrix keys(x.parsed.keys.begin() + begin, x.parsed.keys.begin() + end);
  const Matrix values(x.parsed.values.begin() + begin, x.parsed.values.begin() + end);
  const double bound = WeightBound(x.profile(), end - begin) * Largest(values) + 1e-38;
  for (uint32_t q = 0; q < num_queries; ++q) {
    const auto wanted = ReferenceAttend(scores[q], values, dim, options);
    if (begin == end) {
      ASSERT_EQ(lse[q], -std::numeric_limits<float>::infinity());
    } else {
      // Logits of opposite signs may cancel in a mean's score.
      const double logit =
          options.softmax_scale * Norm(RowOf(queries, q, x.layout().head_dim)) * Largest(keys);
      ASSERT_NEAR(lse[q], wanted.lse, 2e-5 * (1 + std::fabs(wanted.lse)) + 2e-6 * logit);
    }
    for (uint32_t c = 0; c < dim; ++c) ASSERT_NEAR(out[size_t{q} * dim + c], wanted.out[c], bound);
  }
}

void ExpectAll(const Subject& x) {
  ASSERT_NO_FATAL_FAILURE(ExpectKeys(x));
  if (x.profile().num_outliers > 0) {
    ASSERT_NO_FATAL_FAILURE(ExpectChannels(x));
  }
  ASSERT_NO_FATAL_FAILURE(ExpectValues(x));
  ASSERT_NO_FATAL_FAILURE(ExpectDecode(x));
  SKETCHKV_ASSERT_OK(x.cell().Validate(x.bytes(), x.parsed.num_tokens));
  const auto queries = RandomQueries(6, x.layout().head_dim, 5);
  ASSERT_NO_FATAL_FAILURE(ExpectScores(x, queries, 6));
  const AttentionOptions plain{.softmax_scale = 0.3f};
  const uint32_t n = x.parsed.num_tokens;
  ASSERT_NO_FATAL_FAILURE(ExpectAttention(x, queries, 6, 0, n, plain));
  const AttentionOptions capped{.softmax_scale = 0.5f, .logit_softcap = 3.0f};
  ASSERT_NO_FATAL_FAILURE(ExpectAttention(x, queries, 6, n / 4, n - n / 3, capped));
}

class EveryProfile : public ::testing::TestWithParam<NamedRequest> {};
INSTANTIATE_TEST_SUITE_P(Codec, EveryProfile, ::testing::ValuesIn(AllRequests()),
                         [](const auto& info) { return info.param.name; });

TEST_P(EveryProfile, AgreesWithTheOracle) {
  struct Shape {
    uint32_t head_dim, value_dim, block_tokens, num_tokens;
  };
  for (const Shape& s : std::vector<Shape>{{16, 24, 1, 1},
                                           {24, 16, 40, 33},
                                           {80, 80, 48, 48},
                                           {128, 96, 64, 50},
                                           {192, 128, 16, 16},
                                           {256, 256, 16, 16}}) {
    SCOPED_TRACE(s.head_dim);
    ASSERT_NO_FATAL_FAILURE(ExpectAll(Subject(Layout(s.head_dim, s.value_dim, s.block_tokens),
                                              GetParam().request, s.num_tokens, s.head_dim)));
  }
}

TEST_P(EveryProfile, ReadsEveryDType) {
  for (DType dtype : {DType::kFp16, DType::kFp32, DType::kFp8E4M3, DType::kFp8E5M2}) {
    SCOPED_TRACE(std::string(DTypeName(dtype)));
    ASSERT_NO_FATAL_FAILURE(
        ExpectAll(Subject(Layout(40, 24, 20, dtype), GetParam().request, 19, 77)));
  }
}

// Squares overflow or vanish in float; and where cells begin to be divided by a power of two.
TEST_P(EveryProfile, SurvivesTheEndsOfTheFloatRange) {
  for (double magnitude : {1.5e38 / 9, 1e-31, 0x1p31, 0x1p-14}) {
    SCOPED_TRACE(magnitude);
    for (DType dtype : {DType::kBf16, DType::kFp32}) {
      const Subject x(Layout(48, 40, 32, dtype), GetParam().request, 30, 3, magnitude);
      ASSERT_NO_FATAL_FAILURE(ExpectKeys(x));
      ASSERT_NO_FATAL_FAILURE(ExpectValues(x));
      ASSERT_NO_FATAL_FAILURE(ExpectDecode(x));
      std::vector<float> queries = RandomQueries(2, 48, 5);
      const AttentionOptions options{.softmax_scale = static_cast<float>(1 / magnitude / 50)};
      for (float& q : queries) q *= 0.05f;
      ASSERT_NO_FATAL_FAILURE(ExpectScores(x, queries, 2));
      if (std::isfinite(options.softmax_scale)) {
        ASSERT_NO_FATAL_FAILURE(ExpectAttention(x, queries, 2, 0, 30, options));
      }
    }
  }
}

TEST(CodecOracleTest, WidestHeads) {
  for (const char* name : {"raw", "qjl", "qjl-paper", "qjl3p", "klt"}) {
    SCOPED_TRACE(name);
    ASSERT_NO_FATAL_FAILURE(ExpectAll(Subject(Layout(576, 576, 16), Named(name), 9, 8)));
  }
}

// Blocks of huge keys that hardly differ, so that only the mean is huge.
TEST(CodecOracleTest, MeansNearTheEndOfTheFloatRange) {
  KvLayout layout = Layout(64, 64, 32);
  ProfileRequest request = Named("qjl3p");
  request.centering = Centering::kBlock;
  const auto codec = MakeCodec(layout, Resolve(request, layout), Isa::kScalar);
  GuardedRows keys(32, 64, DType::kBf16, 0, 0);
  Random random(3);
  for (uint32_t t = 0; t < 32; ++t) {
    for (uint32_t c = 0; c < 64; ++c) {
      keys.Set(t, c, (c % 2 == 0 ? 2e38 : -2e38) * (1 + 0.04 * random.Uniform()));
    }
  }
  const auto cell = EncodeCell(codec->cell(0, 0), keys, RandomRows(32, 64, DType::kBf16, 1), 32);
  std::vector<float> queries = RandomQueries(2, 64, 5);
  for (float& q : queries) q *= 1e-3f;
  std::vector<float> scores(2 * 32);
  codec->cell(0, 0).Score(cell, 0, 32, *codec->cell(0, 0).PrepareQueries(queries), scores.data(),
                          32);
  const Matrix exact = keys.Doubles(1.0);
  for (uint32_t q = 0; q < 2; ++q) {
    for (uint32_t t = 0; t < 32; ++t) {
      const auto query = RowOf(queries, q, 64);
      ASSERT_NEAR(scores[q * 32 + t], ReferenceDot(query, exact[t]),
                  2e-3 * Norm(query) * Norm(exact[t]));
    }
  }
}

// A head whose keys went nowhere along some axes of the sample, and do now: the unit of a key must
// not be set by what matters least in it.
TEST(CodecOracleTest, KeysThatLeaveTheSampleOfTheirBasis) {
  KvLayout layout = Layout(64, 64, 16, DType::kFp32);
  for (const double strays : {0.01, 0.1}) {
    SCOPED_TRACE(strays);
    HeadTable table;
    for (Basis* basis : {&table.key_basis, &table.value_basis}) {
      basis->rows.resize(64 * 64);
      for (size_t i = 0; i < 64; ++i) basis->rows[i * 64 + i] = 1.0f;
      basis->group_bits = {3, 3};
      basis->group_rms = {1e15f, 1e12f};  // only the ratio matters
    }
    const auto tables =
        std::make_shared<const ModelTables>(ModelTables::Create(layout, {table}).value());
    ProfileRequest request = Named("klt");
    request.centering = Centering::kNone;
    const CodecProfile profile = ResolveProfile(request, layout, 0, tables.get()).value();
    const auto codec = BlockCodec::Create(layout, {profile}, Isa::kScalar, tables).value();
    GuardedRows keys(16, 64, DType::kFp32, 0, 0);
    Random random(7);
    for (uint32_t t = 0; t < 16; ++t) {
      for (uint32_t c = 0; c < 64; ++c) keys.Set(t, c, random.Normal() * (c < 32 ? 1.0 : strays));
    }
    const auto cell = EncodeCell(codec->cell(0, 0), keys, keys, 16);
    std::vector<float> decoded(16 * 64);
    SKETCHKV_ASSERT_OK(codec->cell(0, 0).Decode(cell, 16, DType::kFp32,
                                                {reinterpret_cast<std::byte*>(decoded.data()), 256},
                                                DType::kFp32, {}));
    const Matrix exact = keys.Doubles(1.0);
    double error = 0, energy = 0;
    for (uint32_t i = 0; i < 16 * 64; ++i) {
      error += std::pow(decoded[i] - exact[i / 64][i % 64], 2);
      energy += std::pow(exact[i / 64][i % 64], 2);
    }
    EXPECT_LT(std::sqrt(error / energy), 0.22);
  }
}

TEST(CodecOracleTest, ValuesThatAreAPrefixOfTheKeys) {
  KvLayout layout = Layout(72, 40, 32);
  layout.value_source = ValueSource::kKeyPrefix;
  const Subject x(layout, Named("raw"), 21, 9);
  EXPECT_EQ(x.cell().value_bytes(), 0u);
  ASSERT_NO_FATAL_FAILURE(ExpectAll(x));
}

TEST(CodecOracleTest, EmptyRangesGiveZerosAndMinusInfinity) {
  const Subject x(Layout(64, 64, 16), {}, 16, 4);
  const auto queries = RandomQueries(3, 64, 1);
  ASSERT_NO_FATAL_FAILURE(ExpectAttention(x, queries, 3, 5, 5, {.softmax_scale = 1.0f}));
}

TEST(CodecOracleTest, CellsFoldIntoOnePartial) {
  const Subject a(Layout(64, 64, 32), {}, 32, 4);
  const Subject b(Layout(64, 64, 32), {}, 20, 14, 3.0);
  const auto queries = RandomQueries(5, 64, 1);
  const auto prepared = a.cell().PrepareQueries(queries);
  const AttentionOptions options{.softmax_scale = 0.25f, .logit_softcap = 20.0f};
  AttentionPartial partial = a.cell().NewPartial(5);
  a.cell().Attend(a.bytes(), 0, 32, *prepared, options, &partial);
  a.cell().Attend(b.bytes(), 0, 20, *prepared, options, &partial);
  std::vector<float> out(5 * 64), lse(5);
  a.cell().Finish(partial, out.data(), lse.data());
  Matrix scores = ScoresOf(a, queries, 5, 0, 32);
  const Matrix others = ScoresOf(b, queries, 5, 0, 20);
  Matrix values = a.parsed.values;
  values.insert(values.end(), b.parsed.values.begin(), b.parsed.values.end());
  for (uint32_t q = 0; q < 5; ++q) {
    scores[q].insert(scores[q].end(), others[q].begin(), others[q].end());
    const auto wanted = ReferenceAttend(scores[q], values, 64, options);
    EXPECT_NEAR(lse[q], wanted.lse, 2e-5 * (1 + std::fabs(wanted.lse)));
    for (uint32_t c = 0; c < 64; ++c) {
      EXPECT_NEAR(out[q * 64 + c], wanted.out[c], WeightBound(a.profile(), 52) * Largest(values));
    }
  }
}

// Cells of 16 tokens, the first and the last in part, and a short one on the way.
TEST(CodecOracleTest, CellsInOneCallAreTheSameAsOneAtATime) {
  for (const char* name : {"raw", "qjl", "qjl3p", "qjl-paper"}) {
    SCOPED_TRACE(name);
    std::vector<std::unique_ptr<Subject>> subjects;
    std::vector<CellTokens> cells;
    for (uint32_t i = 0; i < 40; ++i) {
      subjects.push_back(std::make_unique<Subject>(Layout(64, 48, 16), Named(name), 16, 100 + 2 * i,
                                                   i == 30 ? 2.0 : 1.0));
      cells.push_back({subjects.back()->bytes().data(), 0, 16});
    }
    cells.front().token_begin = 5;
    cells[20].token_end = 9;
    cells[25].token_begin = cells[25].token_end = 3;
    cells.back().token_end = 11;
    const CellCodec& codec = subjects[0]->cell();
    const uint32_t num_queries = 6;
    const auto queries = RandomQueries(num_queries, 64, 1);
    const auto prepared = codec.PrepareQueries(queries);
    Matrix scores(num_queries), values;
    for (size_t i = 0; i < cells.size(); ++i) {
      const uint32_t begin = cells[i].token_begin, end = cells[i].token_end;
      const Matrix own = ScoresOf(*subjects[i], queries, num_queries, begin, end);
      for (uint32_t q = 0; q < num_queries; ++q) {
        scores[q].insert(scores[q].end(), own[q].begin(), own[q].end());
      }
      values.insert(values.end(), subjects[i]->parsed.values.begin() + begin,
                    subjects[i]->parsed.values.begin() + end);
    }
    const size_t n = values.size();
    std::vector<float> together(num_queries * (n + 1), 7.0f);
    codec.Score(cells, *prepared, together.data(), n + 1);
    const AttentionOptions options{.softmax_scale = 0.25f};
    AttentionPartial partial = codec.NewPartial(num_queries);
    codec.Attend(cells, *prepared, options, &partial);
    std::vector<float> out(num_queries * 48), lse(num_queries);
    codec.Finish(partial, out.data(), lse.data());
    for (uint32_t q = 0; q < num_queries; ++q) {
      for (size_t t = 0; t < n; ++t) ASSERT_EQ(together[q * (n + 1) + t], scores[q][t]) << t;
      ASSERT_EQ(together[q * (n + 1) + n], 7.0f) << "wrote behind the tokens";
      const auto wanted = ReferenceAttend(scores[q], values, 48, options);
      EXPECT_NEAR(lse[q], wanted.lse, 2e-5 * (1 + std::fabs(wanted.lse)));
      for (uint32_t c = 0; c < 48; ++c) {
        EXPECT_NEAR(out[q * 48 + c], wanted.out[c],
                    WeightBound(subjects[0]->profile(), n) * Largest(values));
      }
    }
  }
}

// Thousands of queries in one call, more than one tile of 16, equal to one at a time.
TEST(CodecOracleTest, ManyQueriesAreTheSameAsOneAtATime) {
  const Subject x(Layout(32, 32, 16), {}, 16, 4);
  const auto queries = RandomQueries(3001, 32, 1);
  const auto all = x.cell().PrepareQueries(queries);
  std::vector<float> scores(size_t{3001} * 16), one(16);
  x.cell().Score(x.bytes(), 0, 16, *all, scores.data(), 16);
  for (uint32_t q : {0u, 1u, 15u, 16u, 2999u, 3000u}) {
    const auto single = x.cell().PrepareQueries({queries.data() + size_t{q} * 32, 32});
    x.cell().Score(x.bytes(), 0, 16, *single, one.data(), 16);
    EXPECT_EQ(std::memcmp(one.data(), scores.data() + size_t{q} * 16, 64), 0) << q;
  }
}

TEST(CodecOracleTest, RefusesNumbersThatAreNotFinite) {
  const uint64_t nan = 0x7FC1, infinity = 0xFF80;
  for (const char* name : {"raw", "qjl", "qjl-paper", "qjl3p", "klt"}) {
    const KvLayout layout = Layout(64, 48, 32);
    const auto codec = MakeCodec(layout, Resolve(Named(name), layout), Isa::kScalar);
    std::vector<std::byte> cell(codec->cell(0, 0).cell_bytes());
    GuardedRows keys = RandomRows(20, 64, DType::kBf16, 1);
    GuardedRows values = RandomRows(20, 48, DType::kBf16, 2);
    keys.SetBits(17, 5, nan);
    keys.SetBits(18, 2, infinity);
    EXPECT_THAT(
        codec->cell(0, 0).Encode(keys.view(), values.view(), 20, cell),
        StatusIs(absl::StatusCode::kInvalidArgument, {"keys", "token 17", "channel 5", "NaN"}));
    SKETCHKV_EXPECT_OK(codec->cell(0, 0).Encode(keys.view(), values.view(), 17, cell));
    values.SetBits(3, 47, infinity);
    EXPECT_THAT(codec->cell(0, 0).Encode(keys.view(), values.view(), 17, cell),
                StatusIs(absl::StatusCode::kInvalidArgument,
                         {"values", "token 3", "channel 47", "infinite"}));
  }
}

TEST(CodecOracleTest, RefusesFp8ThatIsNotFiniteAfterItsScale) {
  KvLayout layout = Layout(16, 16, 16, DType::kFp8E5M2);
  layout.key_scale = 1e34f;
  const auto codec = MakeCodec(layout, Resolve({}, layout), Isa::kScalar);
  std::vector<std::byte> cell(codec->cell(0, 0).cell_bytes());
  GuardedRows keys(2, 16, DType::kFp8E5M2, 0, 0);
  keys.Set(1, 9, 57344.0);
  EXPECT_THAT(codec->cell(0, 0).Encode(keys.view(), keys.view(), 2, cell),
              StatusIs(absl::StatusCode::kInvalidArgument, {"token 1", "channel 9", "infinite"}));
}

TEST(CodecOracleTest, DecodesRawHalvesUnchangedAndOthersNotToFp8) {
  for (DType dtype : {DType::kBf16, DType::kFp32, DType::kFp8E4M3}) {
    const KvLayout layout = Layout(24, 16, 20, dtype);
    const auto codec = MakeCodec(layout, Resolve(Named("raw"), layout), Isa::kScalar);
    const GuardedRows keys = RandomRows(19, 24, dtype, 1, 3);
    const GuardedRows values = RandomRows(19, 16, dtype, 2, 3);
    const auto cell = EncodeCell(codec->cell(0, 0), keys, values, 19);
    std::vector<std::byte> out(19 * layout.value_row_bytes());
    SKETCHKV_ASSERT_OK(codec->cell(0, 0).Decode(cell, 19, dtype, {}, dtype,
                                                {out.data(), layout.value_row_bytes()}));
    for (uint32_t t = 0; t < 19; ++t) {
      EXPECT_EQ(std::memcmp(out.data() + t * layout.value_row_bytes(),
                            values.view().data + t * values.view().stride_bytes,
                            layout.value_row_bytes()),
                0);
    }
  }
  const KvLayout layout = Layout(24, 16, 20, DType::kFp8E4M3);
  const auto codec = MakeCodec(layout, Resolve({}, layout), Isa::kScalar);
  const auto cell = EncodeCell(codec->cell(0, 0), RandomRows(4, 24, DType::kFp8E4M3, 1),
                               RandomRows(4, 16, DType::kFp8E4M3, 1), 4);
  std::vector<std::byte> out(4 * 24, kPoison);
  EXPECT_THAT(
      codec->cell(0, 0).Decode(cell, 4, DType::kFp8E4M3, {out.data(), 24}, DType::kBf16, {}),
      StatusIs(absl::StatusCode::kInvalidArgument, {"key dtype", "fp8_e4m3"}));
  EXPECT_EQ(out, std::vector<std::byte>(4 * 24, kPoison));
}

}  // namespace
}  // namespace sketchkv::testing
