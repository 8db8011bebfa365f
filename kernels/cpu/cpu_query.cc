#include <algorithm>
#include <bit>
#include <cstring>

#include "kernels/base/checked_math.h"
#include "kernels/cpu/cpu_scores.h"
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

const uint8_t* Bytes(std::span<const std::byte> cell) {
  return reinterpret_cast<const uint8_t*>(cell.data());
}

// <q, mean>, q given divided by 2^exponent; the mean is divided by its own power of two. In one
// order, in float: equal on every machine.
float MeanScore(const float* query, int exponent, const float* mean, uint32_t dim) {
  const int own = ExponentOf(mean, dim);
  const Pow2Factors down = MakePow2(-own);
  float sum = 0.0f;
  for (uint32_t c = 0; c < dim; ++c) sum += query[c] * ApplyPow2(mean[c], down);
  return ApplyPow2(sum, MakePow2(exponent + own));
}

uint32_t TilesEnd(uint32_t token_end) {
  return static_cast<uint32_t>(RoundUp(token_end, kLanes) / kLanes);
}

}  // namespace

ScoreTable TableSpace::Quantize(size_t index, const float* sums, const KernelTable& kernels) {
  ScoreTable table{};
  uint8_t* entries = lines_[index * 2 * words_].bytes;
  uint8_t* weights = weights_.data() + index * 8 * words_;
  kernels.quantize_table({sums, words_, entries, weights, &table.step, &table.base});
  table.entries = entries;
  table.weights = weights;
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

void CpuQueries::set_exponent(uint32_t q, int exponent) {
  exponents_[q] = exponent;
  tables_[q].factors = MakePow2(exponent);
}

void CpuQueries::SetTable(uint32_t q, const float* sums, const KernelTable& kernels) {
  ScoreTable table = space_.Quantize(q, sums, kernels);
  table.factors = tables_[q].factors;
  table.bias = tables_[q].bias;
  tables_[q] = table;
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
    if (key_mean() == nullptr) continue;
    prepared->set_bias(q, MeanScore(prepared->query(q), prepared->exponent(q), key_mean(), dim));
  }
  if (raw) return prepared;

  std::vector<float> tile(size_t{dim} * kLanes);
  std::vector<float> projected(RoundUp(rows, dim) * kLanes);
  std::vector<float> row_of(rows);
  std::vector<float> sums(TableFloats(format_.key_words));
  for (uint32_t first = 0; first < num_queries; first += kLanes) {
    const uint32_t count = std::min(kLanes, num_queries - first);
    const RowsArgs source = {reinterpret_cast<const uint8_t*>(prepared->query(first)),
                             RoundUp(dim, kLanes) * sizeof(float),
                             static_cast<uint32_t>(DType::kFp32), nullptr};
    kernels_.load_tile(source, count, dim, tile.data());
    kernels_.project_tile(key_projection_->Args(), tile.data(), projected.data());
    for (uint32_t i = 0; i < count; ++i) {
      for (uint32_t row = 0; row < rows; ++row) row_of[row] = projected[size_t{row} * kLanes + i];
      if (keep) std::copy_n(row_of.data(), rows, prepared->projected(first + i));
      BuildTables(key_groups_, format_.key_words, row_of.data(), sums.data());
      prepared->SetTable(first + i, sums.data(), kernels_);
    }
  }
  return prepared;
}

void CpuCellCodec::ScoreTiles(const uint8_t* cell, uint32_t tile_begin, uint32_t tile_end,
                              const CpuQueries& queries, uint32_t first_query,
                              Scores* scores) const {
  ScorePlanesArgs args{};
  args.planes = cell + format_.planes;
  args.scales = cell + format_.scale_offset(0, format_.key_scale_row);
  args.scale_stride = size_t{format_.scale_rows} * kLanes * 2;
  args.words = format_.key_words;
  args.tile_begin = tile_begin;
  args.tile_end = tile_end;
  args.num_queries = scores->num_queries;
  args.scores = scores->of[0];
  args.stride = kMaxCellTokens;
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
    AddResiduals(cell, tile_begin, tile_end, queries, first_query, scores);
  }
}

void CpuCellCodec::AddResiduals(const uint8_t* cell, uint32_t tile_begin, uint32_t tile_end,
                                const CpuQueries& queries, uint32_t first_query,
                                Scores* scores) const {
  const uint8_t* channels = OutlierChannels(cell, 0);
  for (uint32_t q = 0; q < scores->num_queries; ++q) {
    const float* query = queries.query(first_query + q);
    float chosen[kMaxOutlierChannels];
    for (uint32_t o = 0; o < profile_.num_outliers; ++o) {
      chosen[o] = query[ReadU16(channels + 2 * o)];
    }
    kernels_.score_residuals({cell + format_.residuals, cell + format_.residual_scales,
                              profile_.num_outliers, tile_begin, tile_end, chosen,
                              MakePow2(queries.exponent(first_query + q)), scores->of[q]});
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
  std::vector<float> sums(TableFloats(std::max(format_.key_words, format_.outlier_words)));
  TableSpace rest_space(args.num_queries, format_.key_words);
  TableSpace chosen_space(args.num_queries, format_.outlier_words);
  ScoreTable rest_tables[kQueryTile];
  ScoreTable chosen_tables[kQueryTile];
  const ScoreTable* whole[kQueryTile];
  std::copy_n(args.tables, args.num_queries, whole);
  const uint32_t last_tile = args.tile_end;
  for (uint32_t tile = args.tile_begin; tile < last_tile; tile = args.tile_end) {
    const uint32_t group = tile / group_tiles;
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
      BuildTables(key_groups_, format_.key_words, query.rest, sums.data());
      rest_tables[q] = rest_space.Quantize(q, sums.data(), kernels_);
      BuildTables(outlier_groups_, format_.outlier_words, query.chosen, sums.data());
      chosen_tables[q] = chosen_space.Quantize(q, sums.data(), kernels_);
      rest_tables[q].factors = chosen_tables[q].factors = whole[q]->factors;
      rest_tables[q].bias = whole[q]->bias;
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

void CpuCellCodec::ScoreTokens(const uint8_t* cell, uint32_t token_begin, uint32_t token_end,
                               const CpuQueries& queries, uint32_t first_query,
                               Scores* scores) const {
  scores->num_queries = std::min(kQueryTile, queries.num_queries() - first_query);
  if (profile_.key_codec != KeyCodec::kRaw) {
    return ScoreTiles(cell, token_begin / kLanes, TilesEnd(token_end), queries, first_query,
                      scores);
  }
  ScoreRowsArgs args{};
  args.rows = StoredKeyRows(cell);
  args.dim = layout_.head_dim;
  args.token_begin = token_begin;
  args.token_end = token_end;
  args.num_queries = scores->num_queries;
  for (uint32_t q = 0; q < args.num_queries; ++q) args.queries[q] = queries.query(first_query + q);
  args.scores = scores->of[0];
  args.stride = kMaxCellTokens;
  kernels_.score_rows(args);
}

void CpuCellCodec::Score(std::span<const std::byte> cell, uint32_t token_begin, uint32_t token_end,
                         const PreparedQueries& queries, float* scores,
                         size_t scores_stride) const {
  if (token_begin >= token_end) return;
  const auto& prepared = static_cast<const CpuQueries&>(queries);
  Scores tile;
  for (uint32_t first = 0; first < prepared.num_queries(); first += kQueryTile) {
    ScoreTokens(Bytes(cell), token_begin, token_end, prepared, first, &tile);
    for (uint32_t q = 0; q < tile.num_queries; ++q) {
      std::copy_n(tile.of[q] + token_begin, token_end - token_begin,
                  scores + (first + q) * scores_stride);
    }
  }
}

}  // namespace sketchkv
