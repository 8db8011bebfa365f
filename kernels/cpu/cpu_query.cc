#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>

#include "kernels/base/checked_math.h"
#include "kernels/cpu/cpu_codec.h"
#include "kernels/exact_math.h"

namespace sketchkv {
namespace {

// Partial outputs are kept divided by 2^20, so that values near the largest float can be summed
// over a million tokens.
constexpr int kValueDomain = 20;

// Room for the split projections of up to four queries (or of one, for the widest sketches).
constexpr uint32_t kSplitFloats = 2 * 8 * kMaxDim;

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

uint32_t TilesEnd(uint32_t token_end) {
  return static_cast<uint32_t>(RoundUp(token_end, kLanes) / kLanes);
}

}  // namespace

// Of up to four queries over one cell; index = token.
struct CpuCellCodec::Scores {
  uint32_t num_queries = 0;
  alignas(64) float of[kQueryTile][kMaxCellTokens];
};

std::unique_ptr<PreparedQueries> CpuCellCodec::PrepareQueries(
    std::span<const float> queries) const {
  const uint32_t dim = layout_.head_dim;
  const auto num_queries = static_cast<uint32_t>(queries.size() / dim);
  const bool sketch = profile_.key_codec == KeyCodec::kSketch;
  const uint32_t rows = profile_.sign_bits;
  auto prepared = std::make_unique<CpuQueries>(num_queries, RoundUp(dim, kLanes), rows);
  for (uint32_t q = 0; q < num_queries; ++q) {
    const float* query = queries.data() + size_t{q} * dim;
    std::copy_n(query, dim, prepared->query(q));
    if (!sketch) continue;
    prepared->set_exponent(q, ExponentOf(query, dim));
    kernels_.multiply(prepared->query(q), RoundUp(dim, kLanes), MakePow2(-prepared->exponent(q)));
  }
  if (!sketch) return prepared;

  std::vector<float> tile(size_t{dim} * kLanes);
  std::vector<float> projected(RoundUp(rows, dim) * kLanes);
  for (uint32_t first = 0; first < num_queries; first += kLanes) {
    const uint32_t count = std::min(kLanes, num_queries - first);
    const RowsArgs source = {reinterpret_cast<const uint8_t*>(prepared->query(first)),
                             RoundUp(dim, kLanes) * sizeof(float),
                             static_cast<uint32_t>(DType::kFp32), nullptr};
    kernels_.load_tile(source, count, dim, tile.data());
    kernels_.project_tile(projection_->Args(), tile.data(), projected.data());
    for (uint32_t i = 0; i < count; ++i) {
      float* out = prepared->projected(first + i);
      for (uint32_t row = 0; row < rows; ++row) out[row] = -projected[size_t{row} * kLanes + i];
    }
  }
  return prepared;
}

void CpuCellCodec::ScoreTiles(const uint8_t* cell, uint32_t tile_begin, uint32_t tile_end,
                              const CpuQueries& queries, uint32_t first_query,
                              Scores* scores) const {
  const CellHeader header = ReadHeader(cell);
  ScoreSignsArgs args{};
  args.signs = cell + format_.signs;
  args.scales = cell + format_.key_scales;
  args.words = format_.sign_words;
  args.tile_begin = tile_begin;
  args.tile_end = tile_end;
  args.num_queries = scores->num_queries;
  args.scores = scores->of[0];
  args.stride = kMaxCellTokens;
  for (uint32_t q = 0; q < args.num_queries; ++q) {
    args.projected[q] = queries.projected(first_query + q);
    args.factors[q] = MakePow2(header.key_exponent + queries.exponent(first_query + q));
  }
  if (profile_.outlier_method == OutlierMethod::kSketch) {
    return ScoreGroups(cell, header, queries, first_query, args);
  }
  kernels_.score_signs(args);
  if (profile_.outlier_method != OutlierMethod::kResidual) return;

  uint8_t halves[2 * kLanes] = {};
  std::memcpy(halves, cell + format_.residual_scales, size_t{2} * profile_.num_outliers);
  float scales[kLanes], coefficients[kLanes];
  kernels_.from_half(halves, kLanes, scales);
  for (uint32_t q = 0; q < args.num_queries; ++q) {
    const float* query = queries.query(first_query + q);
    for (uint32_t o = 0; o < profile_.num_outliers; ++o) {
      coefficients[o] = query[ReadU16(cell + format_.outlier_channels + 2 * o)] * scales[o];
    }
    kernels_.score_residuals(
        {cell + format_.residuals, profile_.num_outliers, tile_begin, tile_end, coefficients,
         MakePow2(header.outlier_exponent + queries.exponent(first_query + q)), scores->of[q]});
  }
}

// Second sketch: queries are split for every group of tokens, which has its own channels. `args`
// holds everything for the first sketch over all tiles wanted.
void CpuCellCodec::ScoreGroups(const uint8_t* cell, const CellHeader& header,
                               const CpuQueries& queries, uint32_t first_query,
                               ScoreSignsArgs args) const {
  alignas(64) float split[kSplitFloats];
  const uint32_t rows = profile_.sign_bits;
  const uint32_t chosen_rows = profile_.outlier_sign_bits;
  const uint32_t at_once = std::clamp(kSplitFloats / (rows + chosen_rows), 1u, args.num_queries);
  const uint32_t group_tiles = profile_.outlier_group_tokens / kLanes;
  const ScoreSignsArgs all = args;
  for (uint32_t tile = all.tile_begin; tile < all.tile_end; tile = args.tile_end) {
    const uint32_t group = tile / group_tiles;
    args.tile_begin = tile;
    args.tile_end = std::min(all.tile_end, (group + 1) * group_tiles);
    const uint8_t* channels =
        cell + format_.outlier_channels + size_t{2} * group * profile_.num_outliers;
    SplitQueryArgs query{};
    query.rows = rows;
    query.chosen_rows = chosen_rows;
    query.num_columns = profile_.num_outliers;
    for (uint32_t first = 0; first < all.num_queries; first += at_once) {
      args.num_queries = std::min(at_once, all.num_queries - first);
      ScoreSignsArgs chosen = args;
      for (uint32_t q = 0; q < args.num_queries; ++q) {
        const uint32_t index = first_query + first + q;
        for (uint32_t o = 0; o < profile_.num_outliers; ++o) {
          const uint32_t channel = ReadU16(channels + 2 * o);
          query.columns[o] = columns_.data() + size_t{channel} * rows;
          query.weights[o] = queries.query(index)[channel];
        }
        query.projected = queries.projected(index);
        query.rest = split + size_t{q} * (rows + chosen_rows);
        query.chosen = query.rest + rows;
        kernels_.split_query(query);
        args.projected[q] = query.rest;
        args.factors[q] = all.factors[first + q];
        chosen.projected[q] = query.chosen;
        chosen.factors[q] = MakePow2(header.outlier_exponent + queries.exponent(index));
      }
      args.scores = all.scores + first * all.stride;
      kernels_.score_signs(args);
      chosen.signs = cell + format_.outlier_signs;
      chosen.scales = cell + format_.outlier_scales;
      chosen.words = format_.outlier_words;
      chosen.accumulate = true;
      chosen.scores = args.scores;
      kernels_.score_signs(chosen);
    }
  }
}

void CpuCellCodec::ScoreTokens(const uint8_t* cell, uint32_t token_begin, uint32_t token_end,
                               const CpuQueries& queries, uint32_t first_query,
                               Scores* scores) const {
  scores->num_queries = std::min(kQueryTile, queries.num_queries() - first_query);
  if (profile_.key_codec == KeyCodec::kSketch) {
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

AttentionPartial CpuCellCodec::NewPartial(uint32_t num_queries) const {
  AttentionPartial partial;
  partial.max.assign(num_queries, -std::numeric_limits<float>::infinity());
  partial.sum.assign(num_queries, 0.0f);
  partial.out.assign(size_t{num_queries} * layout_.value_dim, 0.0f);
  return partial;
}

void CpuCellCodec::Attend(std::span<const std::byte> cell, uint32_t token_begin, uint32_t token_end,
                          const PreparedQueries& queries, const AttentionOptions& options,
                          AttentionPartial* partial) const {
  if (token_begin >= token_end) return;
  const auto& prepared = static_cast<const CpuQueries&>(queries);
  const uint32_t dim = layout_.value_dim;
  Scores scores;
  for (uint32_t first = 0; first < prepared.num_queries(); first += kQueryTile) {
    ScoreTokens(Bytes(cell), token_begin, token_end, prepared, first, &scores);
    for (uint32_t q = 0; q < scores.num_queries; ++q) {
      const size_t index = first + q;
      kernels_.softmax({scores.of[q], token_begin, token_end, options.softmax_scale,
                        options.logit_softcap, &partial->max[index], &partial->sum[index],
                        partial->out.data() + index * dim, dim});
    }
    AttendValues(Bytes(cell), token_begin, token_end, first, scores, partial);
  }
}

void CpuCellCodec::AttendValues(const uint8_t* cell, uint32_t token_begin, uint32_t token_end,
                                uint32_t first_query, const Scores& scores,
                                AttentionPartial* partial) const {
  float* out[kQueryTile] = {};
  for (uint32_t q = 0; q < scores.num_queries; ++q) {
    out[q] = partial->out.data() + size_t{first_query + q} * layout_.value_dim;
  }
  if (profile_.value_codec == ValueCodec::kRaw) {
    kernels_.attend_rows({StoredValueRows(cell),
                          layout_.value_dim,
                          token_begin,
                          token_end,
                          scores.num_queries,
                          scores.of[0],
                          kMaxCellTokens,
                          PowerOfTwo(-kValueDomain),
                          {out[0], out[1], out[2], out[3]}});
    return;
  }
  const CellHeader header = ReadHeader(cell);
  kernels_.attend_codes({ValueCodes(cell, header.value_exponent - kValueDomain,
                                    header.minimum_exponent - kValueDomain),
                         token_begin,
                         token_end,
                         scores.num_queries,
                         scores.of[0],
                         kMaxCellTokens,
                         {out[0], out[1], out[2], out[3]}});
}

void CpuCellCodec::Finish(const AttentionPartial& partial, float* out, float* lse) const {
  const uint32_t dim = layout_.value_dim;
  for (size_t q = 0; q < partial.max.size(); ++q) {
    const float sum = partial.sum[q];
    for (uint32_t c = 0; c < dim; ++c) {
      const float x = partial.out[q * dim + c];
      out[q * dim + c] = sum > 0.0f ? x / sum * PowerOfTwo(kValueDomain) : 0.0f;
    }
    lse[q] = sum > 0.0f ? static_cast<float>(partial.max[q] + ExactLog(sum))
                        : -std::numeric_limits<float>::infinity();
  }
}

}  // namespace sketchkv
