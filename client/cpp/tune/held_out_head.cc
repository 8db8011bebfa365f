#include "client/cpp/tune/held_out_head.h"

#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"

namespace sketchkv::tune {
namespace {

using Matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

Eigen::Map<const Matrix> AsMatrix(std::span<const float> numbers, size_t columns) {
  return {numbers.data(), static_cast<Eigen::Index>(numbers.size() / columns),
          static_cast<Eigen::Index>(columns)};
}

std::vector<float> Flatten(const Matrix& matrix) {
  return {matrix.data(), matrix.data() + matrix.size()};
}

// a [n, k] times b [k, m].
std::vector<float> Product(std::span<const float> a, std::span<const float> b, size_t k, size_t m) {
  return Flatten(AsMatrix(a, k) * AsMatrix(b, m));
}

constexpr uint64_t kRecentTokens = 64;

// Of the tokens before a query at `position`, how many come from encoded blocks.
uint64_t NumStored(uint64_t position) { return position - std::min(kRecentTokens, position / 2); }

// Positions of the second halves of `sequences`, at most `count` in all, evenly.
std::vector<std::vector<uint64_t>> ChoosePositions(std::span<const TokenRange> sequences,
                                                   uint64_t count) {
  const auto first = [](const TokenRange& s) { return std::max<uint64_t>(1, s.size() / 2); };
  uint64_t all = 0;
  for (const TokenRange& s : sequences) all += s.size() - std::min(s.size(), first(s));
  count = std::min(count, all);
  std::vector<std::vector<uint64_t>> positions(sequences.size());
  uint64_t before = 0, chosen = 0;  // of the positions of earlier sequences
  for (size_t i = 0; i < sequences.size(); ++i) {
    for (uint64_t t = first(sequences[i]); t < sequences[i].size(); ++t, ++before) {
      if (before * count / all != chosen) continue;
      positions[i].push_back(t);
      ++chosen;
    }
  }
  return positions;
}

// Tokens of block `block` of a sequence.
uint32_t TokensOfBlock(uint64_t num_tokens, uint64_t block, uint32_t block_tokens) {
  return static_cast<uint32_t>(std::min<uint64_t>(block_tokens, num_tokens - block * block_tokens));
}

uint64_t NumBlocks(uint64_t num_tokens, uint32_t block_tokens) {
  return (num_tokens + block_tokens - 1) / block_tokens;
}

bool AllFinite(const std::vector<float>& numbers) {
  return std::all_of(numbers.begin(), numbers.end(), [](float x) { return std::isfinite(x); });
}

}  // namespace

absl::StatusOr<HeldOutHead> HeldOutHead::Load(const Samples& samples, uint32_t layer, uint32_t head,
                                              std::span<const TokenRange> sequences,
                                              uint32_t max_queries) {
  HeldOutHead out;
  out.head_dim_ = samples.head_dim();
  out.value_dim_ = samples.value_dim();
  const uint32_t group = samples.queries_per_kv_head();
  const auto positions = ChoosePositions(sequences, std::max(1u, max_queries / group));
  for (size_t i = 0; i < sequences.size(); ++i) {
    if (positions[i].empty()) continue;
    Sequence sequence;
    sequence.num_tokens = sequences[i].size();
    SKETCHKV_ASSIGN_OR_RETURN(const std::vector<float> keys,
                              samples.Keys(layer, head, sequences[i]));
    SKETCHKV_ASSIGN_OR_RETURN(sequence.values, samples.Values(layer, head, sequences[i]));
    for (const uint64_t position : positions[i]) {
      const uint64_t token = sequences[i].begin + position;
      SKETCHKV_ASSIGN_OR_RETURN(const std::vector<float> queries,
                                samples.Queries(layer, head, {token, token + 1}));
      sequence.queries.insert(sequence.queries.end(), queries.begin(), queries.end());
      sequence.positions.insert(sequence.positions.end(), group, position);
    }
    sequence.key_rows = ToElements(keys, samples.key_dtype());
    sequence.value_rows = ToElements(sequence.values, samples.value_dtype());
    sequence.scores = Flatten(AsMatrix(sequence.queries, out.head_dim_) *
                              AsMatrix(keys, out.head_dim_).transpose());
    sequence.out = Product(out.Weights(sequence.scores, sequence), sequence.values,
                           sequence.num_tokens, out.value_dim_);
    if (!AllFinite(sequence.scores) || !AllFinite(sequence.out)) {
      return absl::InvalidArgumentError(absl::StrCat(
          "attention over the held-out tokens ", sequences[i].begin, " to ", sequences[i].end - 1,
          " leaves the range of floats: queries, keys or values "
          "are too large"));
    }
    out.num_queries_ += sequence.positions.size();
    out.sequences_.push_back(std::move(sequence));
  }
  if (out.num_queries_ > 0) return out;
  return absl::InvalidArgumentError(absl::StrCat("the ", NumTokens(sequences),
                                                 " held-out tokens are in ", sequences.size(),
                                                 " sequences, of which none has 2"));
}

// Softmax of scores [queries, tokens] over the tokens up to that of each query.
std::vector<float> HeldOutHead::Weights(std::vector<float> scores, const Sequence& sequence) const {
  const float scale = 1.0f / std::sqrt(static_cast<float>(head_dim_));
  for (size_t q = 0; q < sequence.positions.size(); ++q) {
    const std::span<float> row =
        std::span(scores).subspan(q * sequence.num_tokens, sequence.num_tokens);
    const std::span<float> seen = row.first(sequence.positions[q] + 1);
    const float most = *std::max_element(seen.begin(), seen.end());
    double sum = 0;
    for (float& x : seen) {
      x = std::exp((x - most) * scale);
      sum += x;
    }
    for (float& x : seen) x = static_cast<float>(x / sum);
    std::fill(row.begin() + static_cast<ptrdiff_t>(seen.size()), row.end(), 0.0f);
  }
  return scores;
}

void HeldOutHead::AppendErrors(const Sequence& sequence, std::span<const float> out,
                               std::vector<double>* errors) const {
  const auto exact = AsMatrix(sequence.out, value_dim_);
  const Matrix difference = AsMatrix(out, value_dim_) - exact;
  for (Eigen::Index q = 0; q < exact.rows(); ++q) {
    const double norm = exact.row(q).cast<double>().norm();
    const double error = difference.row(q).cast<double>().norm();
    errors->push_back(error == 0 ? 0 : error / std::max(norm, 1e-30));
  }
}

absl::StatusOr<std::vector<std::byte>> HeldOutHead::Encode(const CellCodec& codec,
                                                           const Sequence& sequence,
                                                           uint32_t block_tokens) const {
  const size_t key_row = sequence.key_rows.size() / sequence.num_tokens;
  const size_t value_row = sequence.value_rows.size() / sequence.num_tokens;
  const uint64_t num_blocks = NumBlocks(sequence.num_tokens, block_tokens);
  std::vector<std::byte> cells(num_blocks * codec.cell_bytes());
  for (uint64_t b = 0; b < num_blocks; ++b) {
    const uint64_t first = b * block_tokens;
    SKETCHKV_RETURN_IF_ERROR(
        codec.Encode({sequence.key_rows.data() + first * key_row, key_row},
                     {sequence.value_rows.data() + first * value_row, value_row},
                     TokensOfBlock(sequence.num_tokens, b, block_tokens),
                     std::span(cells).subspan(b * codec.cell_bytes(), codec.cell_bytes())));
  }
  return cells;
}

absl::StatusOr<HeldOutHead::Decoded> HeldOutHead::ScoreAndDecode(const CellCodec& codec,
                                                                 const Sequence& sequence,
                                                                 uint32_t block_tokens) const {
  SKETCHKV_ASSIGN_OR_RETURN(const std::vector<std::byte> cells,
                            Encode(codec, sequence, block_tokens));
  const uint64_t tokens = sequence.num_tokens;
  const auto prepared = codec.PrepareQueries(sequence.queries);
  Decoded decoded = {std::vector<float>(sequence.positions.size() * tokens),
                     std::vector<float>(tokens * value_dim_)};
  for (uint64_t b = 0; b < NumBlocks(tokens, block_tokens); ++b) {
    const std::span<const std::byte> cell =
        std::span(cells).subspan(b * codec.cell_bytes(), codec.cell_bytes());
    const uint32_t count = TokensOfBlock(tokens, b, block_tokens);
    const uint64_t first = b * block_tokens;
    codec.Score(cell, 0, count, *prepared, decoded.scores.data() + first, tokens);
    auto* out = reinterpret_cast<std::byte*>(decoded.values.data() + first * value_dim_);
    SKETCHKV_RETURN_IF_ERROR(codec.Decode(cell, count, DType::kFp32, {}, DType::kFp32,
                                          {out, value_dim_ * sizeof(float)}));
  }
  return decoded;
}

absl::StatusOr<HalfErrors> HeldOutHead::MeasureHalves(const CellCodec& codec,
                                                      uint32_t block_tokens) const {
  HalfErrors errors;
  for (const Sequence& sequence : sequences_) {
    SKETCHKV_ASSIGN_OR_RETURN(Decoded decoded, ScoreAndDecode(codec, sequence, block_tokens));
    const uint64_t tokens = sequence.num_tokens;
    std::vector<float> stored_weights = Weights(sequence.scores, sequence);
    for (size_t q = 0; q < sequence.positions.size(); ++q) {
      const auto first = static_cast<ptrdiff_t>(q * tokens + NumStored(sequence.positions[q]));
      const auto end = static_cast<ptrdiff_t>((q + 1) * tokens);
      std::copy(sequence.scores.begin() + first, sequence.scores.begin() + end,
                decoded.scores.begin() + first);
      std::fill(stored_weights.begin() + first, stored_weights.begin() + end, 0.0f);
    }
    const std::vector<float> weights = Weights(std::move(decoded.scores), sequence);
    AppendErrors(sequence, Product(weights, sequence.values, tokens, value_dim_), &errors.keys);
    // What the errors of the stored values add to the exact output.
    for (size_t i = 0; i < decoded.values.size(); ++i) decoded.values[i] -= sequence.values[i];
    std::vector<float> out = Product(stored_weights, decoded.values, tokens, value_dim_);
    for (size_t i = 0; i < out.size(); ++i) out[i] += sequence.out[i];
    AppendErrors(sequence, out, &errors.values);
  }
  return errors;
}

// Exact attention of one query over its recent tokens, as an engine computes it.
void HeldOutHead::AttendRecent(const Sequence& sequence, size_t query, float* out,
                               float* lse) const {
  const uint64_t position = sequence.positions[query], stored = NumStored(position);
  const auto scale = 1.0f / std::sqrt(static_cast<float>(head_dim_));
  const std::span<const float> scores =
      std::span(sequence.scores)
          .subspan(query * sequence.num_tokens + stored, position + 1 - stored);
  const float most = *std::max_element(scores.begin(), scores.end()) * scale;
  std::vector<double> sums(value_dim_);
  double sum = 0;
  for (size_t t = 0; t < scores.size(); ++t) {
    const double weight = std::exp(scores[t] * scale - most);
    sum += weight;
    const float* value = sequence.values.data() + (stored + t) * value_dim_;
    for (size_t c = 0; c < value_dim_; ++c) sums[c] += weight * value[c];
  }
  for (size_t c = 0; c < value_dim_; ++c) out[c] = static_cast<float>(sums[c] / sum);
  *lse = most + static_cast<float>(std::log(sum));
}

absl::StatusOr<double> HeldOutHead::Measure(const CellCodec& codec, uint32_t block_tokens) const {
  const AttentionOptions options = {1.0f / std::sqrt(static_cast<float>(head_dim_)), 0.0f};
  std::vector<double> errors;
  std::vector<float> recent(value_dim_);
  for (const Sequence& sequence : sequences_) {
    SKETCHKV_ASSIGN_OR_RETURN(const std::vector<std::byte> cells,
                              Encode(codec, sequence, block_tokens));
    std::vector<float> out(sequence.out.size());
    for (size_t q = 0; q < sequence.positions.size(); ++q) {
      const uint64_t stored = NumStored(sequence.positions[q]);
      const auto prepared =
          codec.PrepareQueries(std::span(sequence.queries).subspan(q * head_dim_, head_dim_));
      AttentionPartial partial = codec.NewPartial(1);
      for (uint64_t b = 0; b < NumBlocks(stored, block_tokens); ++b) {
        codec.Attend(std::span(cells).subspan(b * codec.cell_bytes(), codec.cell_bytes()), 0,
                     TokensOfBlock(stored, b, block_tokens), *prepared, options, &partial);
      }
      const std::span<float> row = std::span(out).subspan(q * value_dim_, value_dim_);
      float lse = 0, recent_lse = 0;
      codec.Finish(partial, row.data(), &lse);
      AttendRecent(sequence, q, recent.data(), &recent_lse);
      const float share = 1.0f / (1.0f + std::exp(recent_lse - lse));  // of the stored tokens
      for (size_t c = 0; c < value_dim_; ++c) row[c] = share * row[c] + (1 - share) * recent[c];
    }
    AppendErrors(sequence, out, &errors);
  }
  return std::accumulate(errors.begin(), errors.end(), 0.0) / static_cast<double>(num_queries_);
}

}  // namespace sketchkv::tune
