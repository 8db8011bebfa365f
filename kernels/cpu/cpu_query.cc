#include <algorithm>
#include <bit>
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

const uint8_t* Bytes(const std::byte* cell) { return reinterpret_cast<const uint8_t*>(cell); }

// <q, mean>, q given divided by 2^exponent; the mean is divided by its own power of two. In one
// order, in float: equal on every machine.
float MeanScore(const float* query, int exponent, const float* mean, uint32_t dim) {
  const int own = ExponentOf(mean, dim);
  const Pow2Factors down = MakePow2(-own);
  float sum = 0.0f;
  for (uint32_t c = 0; c < dim; ++c) sum += query[c] * ApplyPow2(mean[c], down);
  return ApplyPow2(sum, MakePow2(exponent + own));
}

// Cells whose keys take more are read ahead of while they are scanned.
constexpr size_t kReadAhead = 4096;

}  // namespace

ScoreTables::ScoreTables(size_t num_tables, uint32_t words)
    : words_(words),
      entries_(num_tables * 2 * words),
      weights_(num_tables * 8 * words),
      scratch_(size_t{8} * words * kLanes + RoundUp(8 * words, kLanes)) {}

ScoreTable ScoreTables::Build(size_t index, const std::vector<CodeGroup>& groups,
                              const float* projected, int exponent, const KernelTable& kernels) {
  ScoreTable table{};
  uint8_t* entries = entries_[index * 2 * words_].bytes;
  uint8_t* weights = weights_.data() + index * 8 * words_;
  kernels.build_table({groups.data(), static_cast<uint32_t>(groups.size()), words_, projected,
                       scratch_.data(), scratch_.data() + size_t{8} * words_ * kLanes, entries,
                       weights, &table.step, &table.base});
  table.entries = entries;
  table.weights = weights;
  table.factors = MakePow2(exponent);
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
  // Written before they are read.
  const auto tile = std::make_unique_for_overwrite<float[]>(size_t{dim} * kLanes);
  const auto projected = std::make_unique_for_overwrite<float[]>(RoundUp(rows, dim) * kLanes);
  const auto rows_of = std::make_unique_for_overwrite<float[]>(size_t{rows} * kLanes);
  for (uint32_t first = 0; first < num_queries; first += kLanes) {
    const uint32_t count = std::min(kLanes, num_queries - first);
    const RowsArgs source = {reinterpret_cast<const uint8_t*>(prepared->query(first)),
                             RoundUp(dim, kLanes) * sizeof(float),
                             static_cast<uint32_t>(DType::kFp32), nullptr};
    kernels_.load_tile(source, count, dim, tile.get());
    kernels_.project_tile(key_projection_->Args(), tile.get(), projected.get());
    kernels_.store_tile(projected.get(), count, rows, reinterpret_cast<uint8_t*>(rows_of.get()),
                        rows * sizeof(float), static_cast<uint32_t>(DType::kFp32));
    for (uint32_t i = 0; i < count; ++i) {
      const uint32_t q = first + i;
      const float* row = rows_of.get() + size_t{i} * rows;
      if (keep) std::copy_n(row, rows, prepared->projected(q));
      prepared->table(q) =
          prepared->space().Build(q, key_groups_, row, prepared->exponent(q), kernels_);
      if (key_mean() == nullptr) continue;
      prepared->table(q).bias =
          MeanScore(prepared->query(q), prepared->exponent(q), key_mean(), dim);
    }
  }
  return prepared;
}

void CpuCellCodec::ScoreCodes(const uint8_t* cell, ScorePlanesArgs args, const CpuQueries& queries,
                              uint32_t first_query) const {
  args.planes = cell + format_.planes;
  args.scales = cell + format_.scale_offset(0, format_.key_scale_row);
  args.scale_stride = size_t{format_.scale_rows} * kLanes * 2;
  args.words = format_.key_words;
  args.prefetch_bytes = format_.key_bytes > kReadAhead ? kReadAhead : 0;
  ScoreTable centred[kQueryTile];
  for (uint32_t q = 0; q < args.num_queries; ++q) args.tables[q] = &queries.table(first_query + q);
  if (profile_.centering == Centering::kBlock) {
    float mean[kMaxDim];
    for (uint32_t c = 0; c < layout_.head_dim; ++c) {
      mean[c] = Bf16ToFloat(ReadU16(cell + format_.mean + size_t{2} * c));
    }
    for (uint32_t q = 0; q < args.num_queries; ++q) {
      const uint32_t index = first_query + q;
      centred[q] = queries.table(index);
      centred[q].bias =
          MeanScore(queries.query(index), queries.exponent(index), mean, layout_.head_dim);
      args.tables[q] = &centred[q];
    }
  }
  if (profile_.outlier_method == OutlierMethod::kSketch) {
    return ScoreGroups(cell, queries, first_query, args);
  }
  kernels_.score_planes(args);
  if (profile_.outlier_method == OutlierMethod::kResidual) {
    AddResiduals(cell, args, queries, first_query);
  }
}

void CpuCellCodec::AddResiduals(const uint8_t* cell, const ScorePlanesArgs& args,
                                const CpuQueries& queries, uint32_t first_query) const {
  const uint8_t* channels = OutlierChannels(cell, 0);
  for (uint32_t q = 0; q < args.num_queries; ++q) {
    const float* query = queries.query(first_query + q);
    float chosen[kMaxOutlierChannels];
    for (uint32_t o = 0; o < profile_.num_outliers; ++o) {
      chosen[o] = query[ReadU16(channels + 2 * o)];
    }
    kernels_.score_residuals({cell + format_.residuals, cell + format_.residual_scales,
                              profile_.num_outliers, args.tile_begin, args.tile_end, chosen,
                              MakePow2(queries.exponent(first_query + q)),
                              args.scores + q * args.stride});
  }
}

// Second sketch: queries are split for every group of tokens, which has its own channels. `args`
// holds everything for the first sketch over all tiles wanted.
void CpuCellCodec::ScoreGroups(const uint8_t* cell, const CpuQueries& queries, uint32_t first_query,
                               ScorePlanesArgs args) const {
  const uint32_t rows = profile_.sign_bits;
  const uint32_t chosen_rows = profile_.outlier_sign_bits;
  const uint32_t group_tiles = profile_.outlier_group_tokens / kLanes;
  std::vector<float> split(rows + chosen_rows);
  ScoreTables rest_space(args.num_queries, format_.key_words);
  ScoreTables chosen_space(args.num_queries, format_.outlier_words);
  ScoreTable rest_tables[kQueryTile];
  ScoreTable chosen_tables[kQueryTile];
  float biases[kQueryTile];
  for (uint32_t q = 0; q < args.num_queries; ++q) biases[q] = args.tables[q]->bias;
  const uint32_t last_tile = args.tile_end;
  for (uint32_t tile = args.tile_begin; tile < last_tile; tile = args.tile_end) {
    const uint32_t group = tile / group_tiles;
    args.scores += size_t{kLanes} * (tile - args.tile_begin);
    args.tile_begin = tile;
    args.tile_end = std::min(last_tile, (group + 1) * group_tiles);
    const uint8_t* channels = OutlierChannels(cell, group);
    ScorePlanesArgs chosen = args;
    SplitQueryArgs query{};
    query.rows = rows;
    query.chosen_rows = chosen_rows;
    query.num_columns = profile_.num_outliers;
    query.rest = split.data();
    query.chosen = split.data() + rows;
    for (uint32_t q = 0; q < args.num_queries; ++q) {
      const uint32_t index = first_query + q;
      for (uint32_t o = 0; o < profile_.num_outliers; ++o) {
        const uint32_t channel = ReadU16(channels + 2 * o);
        query.columns[o] = columns_.data() + size_t{channel} * rows;
        query.weights[o] = queries.query(index)[channel];
      }
      query.projected = queries.projected(index);
      kernels_.split_query(query);
      const int exponent = queries.exponent(index);
      rest_tables[q] = rest_space.Build(q, key_groups_, query.rest, exponent, kernels_);
      rest_tables[q].bias = biases[q];
      chosen_tables[q] = chosen_space.Build(q, outlier_groups_, query.chosen, exponent, kernels_);
      args.tables[q] = &rest_tables[q];
      chosen.tables[q] = &chosen_tables[q];
    }
    kernels_.score_planes(args);
    chosen.planes = cell + format_.outlier_planes;
    chosen.scales = cell + format_.scale_offset(0, format_.outlier_scale_row);
    chosen.words = format_.outlier_words;
    chosen.accumulate = true;
    kernels_.score_planes(chosen);
  }
}

void CpuCellCodec::ScoreTokens(const CellTokens& tokens, const CpuQueries& queries,
                               uint32_t first_query, uint32_t num_queries, float* scores,
                               size_t stride) const {
  const uint8_t* cell = Bytes(tokens.cell);
  if (profile_.key_codec != KeyCodec::kRaw) {
    ScorePlanesArgs args{};
    args.tile_begin = tokens.token_begin / kLanes;
    args.tile_end = static_cast<uint32_t>(RoundUp(tokens.token_end, kLanes) / kLanes);
    args.num_queries = num_queries;
    args.scores = scores;
    args.stride = stride;
    return ScoreCodes(cell, args, queries, first_query);
  }
  ScoreRowsArgs args{};
  args.rows = StoredKeyRows(cell);
  args.dim = layout_.head_dim;
  args.token_begin = tokens.token_begin;
  args.token_end = tokens.token_end;
  args.num_queries = num_queries;
  for (uint32_t q = 0; q < num_queries; ++q) args.queries[q] = queries.query(first_query + q);
  args.scores = scores;
  args.stride = stride;
  kernels_.score_rows(args);
}

// Both halves' scales stand together, before the planes.
void CpuCellCodec::PrefetchKeys(const std::byte* cell) const {
  const size_t end =
      profile_.key_codec == KeyCodec::kRaw ? format_.raw_keys_end : format_.outlier_planes;
  const size_t bytes = std::min(end, kReadAhead);
  for (size_t at = 0; at < bytes; at += kLineBytes) __builtin_prefetch(cell + at);
}

void CpuCellCodec::PrefetchValues(const std::byte* cell) const {
  const size_t end = std::min(format_.cell_bytes, format_.values + 2 * kReadAhead);
  for (size_t at = format_.values; at < end; at += kLineBytes) __builtin_prefetch(cell + at);
}

void CpuCellCodec::Score(std::span<const CellTokens> cells, const PreparedQueries& queries,
                         float* scores, size_t scores_stride) const {
  const auto& prepared = static_cast<const CpuQueries&>(queries);
  const size_t ahead = CellsAhead();
  alignas(64) float tiles[kQueryTile][kMaxCellTokens];
  for (size_t i = 0; i < cells.size(); ++i) {
    if (i + ahead < cells.size()) PrefetchKeys(cells[i + ahead].cell);
    const uint32_t begin = cells[i].token_begin, end = cells[i].token_end;
    if (begin >= end) continue;
    const bool whole = begin % kLanes == 0 && end % kLanes == 0;
    for (uint32_t first = 0; first < prepared.num_queries(); first += kQueryTile) {
      const uint32_t count = std::min(kQueryTile, prepared.num_queries() - first);
      float* out = scores + first * scores_stride;
      if (whole) {
        ScoreTokens(cells[i], prepared, first, count, out, scores_stride);
        continue;
      }
      ScoreTokens(cells[i], prepared, first, count, tiles[0], kMaxCellTokens);
      for (uint32_t q = 0; q < count; ++q) {
        std::copy_n(tiles[q] + begin % kLanes, end - begin, out + q * scores_stride);
      }
    }
    scores += end - begin;
  }
}

size_t CpuCellCodec::CellsAhead() const {
  return std::clamp<size_t>(kReadAhead / format_.key_bytes, 1, 8);
}

}  // namespace sketchkv
