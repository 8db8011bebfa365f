#include <gmock/gmock.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/cuda/plan.h"
#include "tests/gpu/device_array.h"
#include "tests/gpu/general_cells.h"

// Scores and attention of the general path against sums in double over what the oracle reads in
// the cells: every profile, on a card, and its code on a host.
namespace sketchkv::testing {
namespace {

// Sums in float. Of scores, as a share of |q||k|; of outputs, of the largest number.
constexpr double kScoreError = 5e-6;
constexpr double kOutputError = 2e-5;

constexpr uint32_t kHeads = GeneralSubject::kHeads;
constexpr size_t kSlotGap = 64;  // of garbage

struct Question {
  std::vector<uint32_t> tokens;  // of each sequence
  uint32_t begin = 0;            // the first token that is asked for
  uint32_t num_queries = 5;      // four and one
  float softcap = 0.0f;
  uint32_t workers = 3;
  double query_size = 1.0;
};

double Norm(const std::vector<double>& x) { return std::sqrt(ReferenceDot(x, x)); }
double Largest(const Matrix& rows) {
  double largest = 0;
  for (const auto& row : rows) {
    for (const double x : row) largest = std::max(largest, std::fabs(x));
  }
  return largest;
}

// Chains of blocks as the CPU encoded them, in slots in reverse order, and what they say.
class Chains {
 public:
  Chains(const GeneralSubject& subject, const Question& question, double magnitude)
      : subject_(subject), question_(question) {
    const KvLayout& layout = subject.layout();
    uint32_t num_blocks = 0;
    for (const uint32_t n : question.tokens) num_blocks += Blocks(n);
    const size_t stride = subject.codec().slot_bytes() + kSlotGap;
    std::vector<std::byte> slots(num_blocks * stride, kPoison);
    uint32_t block = 0;
    for (const uint32_t n : question.tokens) {
      chains_.push_back({block, {}, {}});
      for (uint32_t first = 0; first < n; first += layout.block_tokens, ++block) {
        std::byte* slot = slots.data() + (num_blocks - 1 - block) * stride;
        const uint32_t count = std::min(layout.block_tokens, n - first);
        for (uint32_t head = 0; head < kHeads; ++head) {
          const uint64_t seed = 10 * block + 2 * head;
          const std::vector<std::byte> cell = EncodeCell(
              subject.cell(head),
              RandomRows(count, layout.head_dim, layout.key_dtype, seed, 0, magnitude),
              RandomRows(count, layout.value_dim, layout.value_dtype, seed + 1, 0, magnitude),
              count);
          std::copy(cell.begin(), cell.end(), slot + subject.codec().cell_offset(0, head));
          const ReferenceCell parsed = subject.Parse(head, cell, count);
          Append(parsed.keys, &chains_.back().keys[head]);
          Append(parsed.values, &chains_.back().values[head]);
        }
      }
    }
    const uint8_t* memory = reinterpret_cast<uint8_t*>(subject.runner().PutAll(slots));
    for (uint32_t i = 0; i < num_blocks; ++i) {
      slots_.push_back(memory + (num_blocks - 1 - i) * stride);
    }
    queries_ =
        RandomQueries(static_cast<uint32_t>(question.tokens.size()) * kHeads * question.num_queries,
                      layout.head_dim, 9);
    for (float& x : queries_) x = static_cast<float>(x * question.query_size);
  }

  uint32_t Begin(uint32_t sequence) const {
    return std::min(question_.begin, question_.tokens[sequence]);
  }
  size_t Row(uint32_t sequence, uint32_t head, uint32_t q) const {
    return (size_t{sequence} * kHeads + head) * question_.num_queries + q;
  }
  size_t num_rows() const { return queries_.size() / subject_.layout().head_dim; }
  std::vector<double> Query(size_t row) const {
    return RowOf(queries_, static_cast<uint32_t>(row), subject_.layout().head_dim);
  }
  const Matrix& Keys(uint32_t sequence, uint32_t head) const {
    return chains_[sequence].keys[head];
  }
  const Matrix& Values(uint32_t sequence, uint32_t head) const {
    return chains_[sequence].values[head];
  }

  cuda::GeneralQueryArgs Args() const {
    GeneralRunner& runner = subject_.runner();
    std::vector<cuda::TokenRange> ranges;
    for (uint32_t s = 0; s < question_.tokens.size(); ++s) {
      ranges.push_back({chains_[s].first_block, Begin(s), question_.tokens[s]});
    }
    cuda::GeneralQueryArgs args{};
    CheckOk(cuda::Schedule(ranges, kHeads, {question_.workers}, &args.chain));
    args.chain.slots = runner.PutAll(slots_);
    args.chain.cell_offset = 0;
    args.chain.cell_stride = subject_.codec().cell_bytes(0);
    args.queries = runner.PutAll(queries_);
    args.num_queries = question_.num_queries;
    args.prepared =
        Poisoned(cuda::PreparedFloats(subject_.plan(), args.chain, question_.num_queries));
    return args;
  }
  // Room for floats, all NaN.
  float* Poisoned(size_t size) const {
    const float nan = std::numeric_limits<float>::quiet_NaN();
    return subject_.runner().PutAll(std::vector<float>(size, nan));
  }

 private:
  struct Chain {
    uint32_t first_block;
    Matrix keys[kHeads], values[kHeads];
  };

  uint32_t Blocks(uint32_t tokens) const {
    return (tokens + subject_.layout().block_tokens - 1) / subject_.layout().block_tokens;
  }
  static void Append(const Matrix& rows, Matrix* all) {
    all->insert(all->end(), rows.begin(), rows.end());
  }

  const GeneralSubject& subject_;
  const Question& question_;
  std::vector<Chain> chains_;
  std::vector<const uint8_t*> slots_;
  std::vector<float> queries_;
};

void ExpectScores(const GeneralSubject& subject, const Question& question, const Chains& chains) {
  const size_t stride = *std::max_element(question.tokens.begin(), question.tokens.end()) + 3;
  const size_t size = chains.num_rows() * stride;
  cuda::GeneralScoreArgs args{chains.Args(), chains.Poisoned(size), stride};
  subject.runner().Score(subject.plan(), args);
  const std::vector<float> scores = subject.runner().GetAll(args.scores, size);
  for (uint32_t s = 0; s < question.tokens.size(); ++s) {
    for (uint32_t head = 0; head < kHeads; ++head) {
      const Matrix& keys = chains.Keys(s, head);
      for (uint32_t q = 0; q < question.num_queries; ++q) {
        const size_t row = chains.Row(s, head, q);
        const std::vector<double> query = chains.Query(row);
        const float* own = scores.data() + row * stride - chains.Begin(s);
        for (uint32_t t = chains.Begin(s); t < question.tokens[s]; ++t) {
          ASSERT_NEAR(own[t], ReferenceDot(query, keys[t]),
                      kScoreError * Norm(query) * (Norm(keys[t]) + Largest(keys)) + 1e-30)
              << "sequence " << s << " head " << head << " query " << q << " token " << t;
        }
        ASSERT_TRUE(std::isnan(own[question.tokens[s]])) << "wrote behind sequence " << s;
      }
    }
  }
}

void ExpectAttention(const GeneralSubject& subject, const Question& question, const Chains& chains,
                     float softmax_scale) {
  const uint32_t dim = subject.layout().value_dim;
  const cuda::GeneralQueryArgs query_args = chains.Args();
  const auto& plan = subject.plan();
  const size_t rows = chains.num_rows();
  cuda::GeneralAttendArgs args{
      query_args,
      softmax_scale,
      question.softcap,
      chains.Poisoned(cuda::PartialFloats(plan, query_args.chain, question.num_queries)),
      chains.Poisoned(cuda::TurnedFloats(plan, query_args.chain, question.num_queries)),
      chains.Poisoned(rows * dim),
      chains.Poisoned(rows)};
  subject.runner().Attend(plan, args);
  const std::vector<float> out = subject.runner().GetAll(args.out, rows * dim);
  const std::vector<float> lse = subject.runner().GetAll(args.lse, rows);
  const AttentionOptions options{.softmax_scale = softmax_scale, .logit_softcap = question.softcap};
  for (uint32_t s = 0; s < question.tokens.size(); ++s) {
    for (uint32_t head = 0; head < kHeads; ++head) {
      const Matrix keys(chains.Keys(s, head).begin() + chains.Begin(s), chains.Keys(s, head).end());
      const Matrix values(chains.Values(s, head).begin() + chains.Begin(s),
                          chains.Values(s, head).end());
      for (uint32_t q = 0; q < question.num_queries; ++q) {
        const size_t row = chains.Row(s, head, q);
        const std::vector<double> query = chains.Query(row);
        std::vector<double> scores;
        for (const auto& key : keys) scores.push_back(ReferenceDot(query, key));
        const auto wanted = ReferenceAttend(scores, values, dim, options);
        SCOPED_TRACE(::testing::Message()
                     << "sequence " << s << " head " << head << " query " << q);
        if (keys.empty()) {
          ASSERT_EQ(lse[row], -std::numeric_limits<float>::infinity());
        } else {
          // What a logit may be wrong by.
          const double logit = softmax_scale * kScoreError * Norm(query) * 2 * Largest(keys) *
                               std::sqrt(static_cast<double>(query.size()));
          ASSERT_NEAR(lse[row], wanted.lse, 1e-5 * (1 + std::fabs(wanted.lse)) + logit);
        }
        const double bound = kOutputError * Largest(values) + 1e-38;
        for (uint32_t c = 0; c < dim; ++c) ASSERT_NEAR(out[row * dim + c], wanted.out[c], bound);
      }
    }
  }
}

void ExpectAnswers(KvLayout layout, const ProfileRequest& request, RunOn where,
                   const Question& question, double magnitude = 1.0, float softmax_scale = 0.3f) {
  SCOPED_TRACE(::testing::Message()
               << "head_dim " << layout.head_dim << " value_dim " << layout.value_dim
               << " block_tokens " << layout.block_tokens << " "
               << std::string(DTypeName(layout.key_dtype)) << " magnitude " << magnitude);
  const GeneralSubject subject(std::move(layout), request, where);
  const Chains chains(subject, question, magnitude);
  ASSERT_NO_FATAL_FAILURE(ExpectScores(subject, question, chains));
  ASSERT_NO_FATAL_FAILURE(ExpectAttention(subject, question, chains, softmax_scale));
}

class GeneralAttendTest : public ::testing::TestWithParam<GeneralCase> {
 protected:
  void SetUp() override {
    if (GetParam().where == RunOn::kCard) SKETCHKV_NEED_GPU();
  }
  static void Check(const KvLayout& layout, const Question& question, double magnitude = 1.0,
                    float softmax_scale = 0.3f) {
    ExpectAnswers(layout, GetParam().profile.request, GetParam().where, question, magnitude,
                  softmax_scale);
  }
};
SKETCHKV_GENERAL_SUITES(GeneralAttendTest);

TEST_P(GeneralAttendTest, AgreesWithTheOracleInEveryShape) {
  ASSERT_NO_FATAL_FAILURE(Check(Layout(16, 24, 1), {.tokens = {1, 3}}));
  ASSERT_NO_FATAL_FAILURE(Check(Layout(24, 16, 40), {.tokens = {200, 0, 33}, .workers = 1}));
  ASSERT_NO_FATAL_FAILURE(Check(Layout(80, 72, 48), {.tokens = {300, 64}, .begin = 37}));
  ASSERT_NO_FATAL_FAILURE(
      Check(Layout(128, 96, 64), {.tokens = {600, 1}, .num_queries = 4, .workers = 100}));
  ASSERT_NO_FATAL_FAILURE(Check(Layout(64, 136, 17), {.tokens = {90}, .num_queries = 19}));
  ASSERT_NO_FATAL_FAILURE(
      Check(Layout(48, 40, 1024), {.tokens = {700}, .num_queries = 1, .softcap = 2.5f}));
}

TEST_P(GeneralAttendTest, AgreesWithTheOracleForEveryDType) {
  for (const DType dtype : {DType::kFp16, DType::kFp32, DType::kFp8E4M3, DType::kFp8E5M2}) {
    ASSERT_NO_FATAL_FAILURE(Check(Layout(40, 24, 20, dtype), {.tokens = {70}}));
  }
}

TEST_P(GeneralAttendTest, SurvivesTheEndsOfTheFloatRange) {
  for (const double magnitude : {1.5e38 / 9, 1e-31}) {
    const Question question{.tokens = {90}, .num_queries = 2, .query_size = 0.05};
    ASSERT_NO_FATAL_FAILURE(
        Check(Layout(48, 40, 32), question, magnitude, static_cast<float>(1 / magnitude / 50)));
  }
}

class GeneralAttendPlaceTest : public ::testing::TestWithParam<RunOn> {
 protected:
  void SetUp() override {
    if (GetParam() == RunOn::kCard) SKETCHKV_NEED_GPU();
  }
};
INSTANTIATE_TEST_SUITE_P(OnHost, GeneralAttendPlaceTest, ::testing::Values(RunOn::kHost));
INSTANTIATE_TEST_SUITE_P(OnCard, GeneralAttendPlaceTest, ::testing::Values(RunOn::kCard));

TEST_P(GeneralAttendPlaceTest, WidestHeads) {
  for (const char* name : {"raw", "qjl", "qjl-paper", "qjl4p", "klt"}) {
    ASSERT_NO_FATAL_FAILURE(
        ExpectAnswers(Layout(576, 576, 18), Named(name), GetParam(), {.tokens = {40}}));
  }
}

TEST_P(GeneralAttendPlaceTest, ValuesThatAreAPrefixOfTheKeys) {
  KvLayout layout = Layout(72, 40, 36);
  layout.value_source = ValueSource::kKeyPrefix;
  ASSERT_NO_FATAL_FAILURE(ExpectAnswers(layout, Named("raw"), GetParam(), {.tokens = {100}}));
}

}  // namespace
}  // namespace sketchkv::testing
