#include <algorithm>
#include <bit>
#include <cstdlib>
#include <cstring>

#include "kernels/base/checked_math.h"
#include "kernels/cpu/cpu_codec.h"
#include "kernels/exact_math.h"

namespace sketchkv {
namespace {

int ExponentOf(const float* query, uint32_t dim) {
  uint32_t largest = 0;
  for (uint32_t c = 0; c < dim; ++c) {
    largest = std::max(largest, std::bit_cast<uint32_t>(query[c]) & 0x7FFFFFFFu);
  }
  return largest == 0 ? 0 : FloorLog2(std::bit_cast<float>(largest));
}

constexpr int kFoldedExponent = 40;

}  // namespace

ScoreTables::ScoreTables(size_t num_tables, uint32_t words) : words_(words) {
  const size_t entry_bytes = num_tables * 2 * words * kLineBytes;
  memory_ = std::make_unique_for_overwrite<uint8_t[]>(kLineBytes - 1 + entry_bytes +
                                                      num_tables * 8 * words);
  const auto begin = reinterpret_cast<uintptr_t>(memory_.get());
  entries_ = memory_.get() + (RoundUp(begin, kLineBytes) - begin);
  weights_ = entries_ + entry_bytes;
}

ScoreTable ScoreTables::Build(size_t index, const std::vector<CodeGroup>& groups,
                              const float* projected, int exponent, const KernelTable& kernels) {
  ScoreTable table{};
  uint8_t* entries = entries_ + index * 2 * words_ * kLineBytes;
  uint8_t* weights = weights_ + index * 8 * words_;
  Scratch sums(size_t{8} * words_ * kLanes);
  Scratch largest(RoundUp(8 * words_, kLanes));
  kernels.build_table({groups.data(), static_cast<uint32_t>(groups.size()), words_, projected,
                       sums.data(), largest.data(), entries, weights, &table.step, &table.base});
  table.entries = entries;
  table.weights = weights;
  // Usual queries' powers of two go into the sums: the same numbers with three products less.
  table.has_factors = std::abs(exponent) > kFoldedExponent;
  table.factors = MakePow2(table.has_factors ? exponent : 0);
  const float folded = PowerOfTwo(table.has_factors ? 0 : exponent);
  table.step *= folded;
  table.base *= folded;
  return table;
}

CpuQueries::CpuQueries(uint32_t num_queries, size_t row, size_t projected_row, uint32_t words)
    : PreparedQueries(num_queries),
      row_(row),
      projected_row_(projected_row),
      space_(num_queries, words),
      exponents_(num_queries),
      queries_(num_queries * row),
      projected_(num_queries * projected_row),
      tables_(num_queries) {}

float CpuQueries::MeanScore(uint32_t q, const float* mean, uint32_t dim) const {
  const int own = ExponentOf(mean, dim);
  const Pow2Factors down = MakePow2(-own);
  float sum = 0.0f;
  for (uint32_t c = 0; c < dim; ++c) sum += query(q)[c] * ApplyPow2(mean[c], down);
  return ApplyPow2(sum, MakePow2(exponent(q) + own));
}

std::unique_ptr<PreparedQueries> CpuCellCodec::PrepareQueries(
    std::span<const float> queries) const {
  const uint32_t dim = layout_.head_dim;
  const auto num_queries = static_cast<uint32_t>(queries.size() / dim);
  const bool raw = profile_.key_codec == KeyCodec::kRaw;
  const bool keep = profile_.outlier_method == OutlierMethod::kSketch;
  const uint32_t rows = raw ? 0 : key_projection_->rows();
  auto prepared = std::make_unique<CpuQueries>(num_queries, RoundUp(dim, kLanes), keep ? rows : 0,
                                               raw ? 0 : format_.key_words);
  for (uint32_t q = 0; q < num_queries; ++q) {
    const float* query = queries.data() + size_t{q} * dim;
    std::copy_n(query, dim, prepared->query(q));
    if (raw) continue;
    prepared->set_exponent(q, ExponentOf(query, dim));
    kernels_.multiply(prepared->query(q), RoundUp(dim, kLanes), MakePow2(-prepared->exponent(q)));
  }
  if (raw) return prepared;

  // Sixteen queries are lanes of one tile.
  Scratch tile(size_t{dim} * kLanes);
  Scratch projected(RoundUp(rows, dim) * kLanes);
  Scratch rows_of(size_t{rows} * kLanes);
  for (uint32_t first = 0; first < num_queries; first += kLanes) {
    const uint32_t count = std::min(kLanes, num_queries - first);
    const RowsArgs source = {reinterpret_cast<const uint8_t*>(prepared->query(first)),
                             RoundUp(dim, kLanes) * sizeof(float),
                             static_cast<uint32_t>(DType::kFp32), nullptr};
    kernels_.load_tile(source, count, dim, tile.data());
    kernels_.project_tile(key_projection_->Args(), tile.data(), projected.data());
    kernels_.store_tile(projected.data(), count, rows, reinterpret_cast<uint8_t*>(rows_of.data()),
                        rows * sizeof(float), static_cast<uint32_t>(DType::kFp32));
    for (uint32_t i = 0; i < count; ++i) {
      const uint32_t q = first + i;
      const float* row = rows_of.data() + size_t{i} * rows;
      if (keep) std::copy_n(row, rows, prepared->projected(q));
      prepared->table(q) =
          prepared->space().Build(q, key_groups_, row, prepared->exponent(q), kernels_);
      if (key_mean() == nullptr) continue;
      prepared->table(q).bias = prepared->MeanScore(q, key_mean(), dim);
    }
  }
  return prepared;
}

}  // namespace sketchkv
