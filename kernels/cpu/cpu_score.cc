#include <algorithm>

#include "kernels/base/checked_math.h"
#include "kernels/cpu/cpu_tiles.h"

namespace sketchkv {
namespace {

const uint8_t* Bytes(const std::byte* cell) { return reinterpret_cast<const uint8_t*>(cell); }

uint32_t FirstTile(const CellTokens& tokens) { return tokens.token_begin / kLanes; }
uint32_t EndTile(const CellTokens& tokens) {
  return static_cast<uint32_t>(RoundUp(tokens.token_end, kLanes) / kLanes);
}
uint32_t NumTiles(const CellTokens& tokens) { return EndTile(tokens) - FirstTile(tokens); }

}  // namespace

void CellCursor::Settle() {
  while (!cells_.empty()) {
    if (!begun_) token_ = cells_[0].token_begin;
    begun_ = true;
    if (token_ < cells_[0].token_end) return;
    cells_ = cells_.subspan(1);
    begun_ = false;
  }
}

CellTokens CellCursor::Peek(uint32_t num_tiles) const {
  const uint32_t most = (token_ / kLanes + num_tiles) * kLanes;
  return {cells_[0].cell, token_, std::min(cells_[0].token_end, most)};
}

void CellCursor::Take(const CellTokens& piece) {
  token_ = piece.token_end;
  Settle();
}

void CpuCellCodec::GatherTiles(bool with_values, CellCursor* cursor, Tiles* tiles) const {
  tiles->with_values = with_values;
  tiles->num_pieces = tiles->num_tiles = 0;
  const bool min_max = profile_.value_codec == ValueCodec::kMinMax;
  while (!cursor->done() && tiles->num_tiles < Tiles::kMost) {
    const CellTokens piece = cursor->Peek(Tiles::kMost - tiles->num_tiles);
    if (tiles->num_pieces == 0) {
      tiles->token_begin = tiles->token_end = piece.token_begin % kLanes;
    } else if (tiles->token_end % kLanes != 0 || piece.token_begin % kLanes != 0) {
      break;
    }
    cursor->Take(piece);
    tiles->pieces[tiles->num_pieces++] = piece;
    tiles->token_end += piece.token_end - piece.token_begin;
    const uint8_t* cell = Bytes(piece.cell);
    for (uint32_t own = FirstTile(piece); own < EndTile(piece); ++own) {
      const uint32_t tile = tiles->num_tiles++;
      tiles->planes[tile] = cell + format_.plane_offset(own);
      tiles->key_scales[tile] = cell + format_.scale_offset(own, format_.key_scale_row);
      if (!with_values) continue;
      tiles->lines[tile] = cell + format_.value_offset(own);
      tiles->value_scales[tile] =
          min_max ? cell + format_.ranges + size_t{own} * format_.value_groups * kLineBytes
                  : cell + format_.scale_offset(own, format_.value_scale_row);
    }
  }
  CellCursor ahead = *cursor;
  uint32_t tile = tiles->num_tiles;
  const uint32_t end = tile + Tiles::kAhead;
  while (!ahead.done() && tile < end) {
    const CellTokens piece = ahead.Peek(end - tile);
    ahead.Take(piece);
    for (uint32_t own = FirstTile(piece); own < EndTile(piece); ++own, ++tile) {
      tiles->planes[tile] = Bytes(piece.cell) + format_.plane_offset(own);
      tiles->key_scales[tile] =
          Bytes(piece.cell) + format_.scale_offset(own, format_.key_scale_row);
    }
  }
  for (; tile < end; ++tile) {
    tiles->planes[tile] = tiles->planes[tiles->num_tiles - 1];
    tiles->key_scales[tile] = tiles->key_scales[tiles->num_tiles - 1];
  }
}

void CpuCellCodec::ScoreTogether(const Tiles& tiles, bool prefetch, const CpuQueries& queries,
                                 uint32_t first_query, uint32_t num_queries, float* scores,
                                 size_t stride) const {
  if (profile_.key_codec == KeyCodec::kRaw) {
    for (const CellTokens& tokens : std::span(tiles.pieces).first(tiles.num_pieces)) {
      ScoreRawKeys(tokens, queries, first_query, num_queries, scores, stride);
      scores += size_t{NumTiles(tokens)} * kLanes;
    }
    return;
  }
  ScorePlanesArgs args{};
  args.planes = args.ahead = tiles.planes;
  args.scales = tiles.key_scales;
  args.words = format_.key_words;
  args.num_tiles = tiles.num_tiles;
  args.num_queries = num_queries;
  args.scores = scores;
  args.stride = stride;
  for (uint32_t q = 0; q < num_queries; ++q) args.tables[q] = &queries.table(first_query + q);
  if (prefetch) {
    args.ahead = tiles.planes + Tiles::kAhead;
    args.prefetch[0] = {tiles.key_scales + Tiles::kAhead, 1};
  }
  if (prefetch && tiles.with_values) {
    args.prefetch[1] = {tiles.lines, format_.value_lines};
    args.prefetch[2] = {tiles.value_scales, std::max(1u, format_.value_groups)};
  }
  if (profile_.centering != Centering::kBlock && profile_.num_outliers == 0) {
    return kernels_.score_planes(args);
  }
  for (const CellTokens& tokens : std::span(tiles.pieces).first(tiles.num_pieces)) {
    args.num_tiles = NumTiles(tokens);
    ScoreCell(tokens, queries, first_query, args);
    args.planes += args.num_tiles;
    args.ahead += args.num_tiles;
    args.scales += args.num_tiles;
    args.scores += size_t{args.num_tiles} * kLanes;
    for (PrefetchRun& run : args.prefetch) run.at += run.lines == 0 ? 0 : args.num_tiles;
  }
}

void CpuCellCodec::ScoreCell(const CellTokens& tokens, const CpuQueries& queries,
                             uint32_t first_query, ScorePlanesArgs args) const {
  const uint8_t* cell = Bytes(tokens.cell);
  ScoreTable centred[kQueryTile];
  if (profile_.centering == Centering::kBlock) {
    float mean[kMaxDim];
    for (uint32_t c = 0; c < layout_.head_dim; ++c) {
      mean[c] = Bf16ToFloat(ReadU16(cell + format_.mean + size_t{2} * c));
    }
    for (uint32_t q = 0; q < args.num_queries; ++q) {
      centred[q] = *args.tables[q];
      centred[q].bias = queries.MeanScore(first_query + q, mean, layout_.head_dim);
      args.tables[q] = &centred[q];
    }
  }
  if (profile_.outlier_method == OutlierMethod::kSketch) {
    return ScoreGroups(tokens, queries, first_query, args);
  }
  kernels_.score_planes(args);
  if (profile_.outlier_method == OutlierMethod::kResidual) {
    AddResiduals(tokens, args, queries, first_query);
  }
}

void CpuCellCodec::AddResiduals(const CellTokens& tokens, const ScorePlanesArgs& args,
                                const CpuQueries& queries, uint32_t first_query) const {
  const uint8_t* cell = Bytes(tokens.cell);
  const uint8_t* channels = OutlierChannels(cell, 0);
  for (uint32_t q = 0; q < args.num_queries; ++q) {
    const float* query = queries.query(first_query + q);
    float chosen[kMaxOutlierChannels];
    for (uint32_t o = 0; o < profile_.num_outliers; ++o) {
      chosen[o] = query[ReadU16(channels + 2 * o)];
    }
    kernels_.score_residuals({cell + format_.residuals, cell + format_.residual_scales,
                              profile_.num_outliers, FirstTile(tokens), EndTile(tokens), chosen,
                              MakePow2(queries.exponent(first_query + q)),
                              args.scores + q * args.stride});
  }
}

// Second sketch: queries are split for every group of tokens, which has its own channels. `args`
// holds everything for the first sketch over all tiles wanted.
void CpuCellCodec::ScoreGroups(const CellTokens& tokens, const CpuQueries& queries,
                               uint32_t first_query, ScorePlanesArgs args) const {
  const uint8_t* cell = Bytes(tokens.cell);
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
  for (uint32_t tile = FirstTile(tokens); tile < EndTile(tokens); tile += args.num_tiles) {
    const uint32_t group = tile / group_tiles;
    args.num_tiles = std::min(EndTile(tokens), (group + 1) * group_tiles) - tile;
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
    const uint8_t* planes[Tiles::kMost];
    const uint8_t* scales[Tiles::kMost];
    for (uint32_t i = 0; i < args.num_tiles; ++i) {
      planes[i] = cell + format_.outlier_plane_offset(tile + i);
      scales[i] = cell + format_.scale_offset(tile + i, format_.outlier_scale_row);
    }
    chosen.planes = chosen.ahead = planes;
    chosen.scales = scales;
    chosen.words = format_.outlier_words;
    for (PrefetchRun& run : chosen.prefetch) run.lines = 0;
    chosen.accumulate = true;
    kernels_.score_planes(chosen);
    args.planes += args.num_tiles;
    args.ahead += args.num_tiles;
    args.scales += args.num_tiles;
    args.scores += size_t{args.num_tiles} * kLanes;
    for (PrefetchRun& run : args.prefetch) run.at += run.lines == 0 ? 0 : args.num_tiles;
  }
}

void CpuCellCodec::ScoreRawKeys(const CellTokens& tokens, const CpuQueries& queries,
                                uint32_t first_query, uint32_t num_queries, float* scores,
                                size_t stride) const {
  ScoreRowsArgs args{};
  args.rows = StoredKeyRows(Bytes(tokens.cell));
  args.dim = layout_.head_dim;
  args.token_begin = tokens.token_begin;
  args.token_end = tokens.token_end;
  args.num_queries = num_queries;
  for (uint32_t q = 0; q < num_queries; ++q) args.queries[q] = queries.query(first_query + q);
  args.scores = scores;
  args.stride = stride;
  kernels_.score_rows(args);
}

void CpuCellCodec::Score(std::span<const CellTokens> cells, const PreparedQueries& queries,
                         float* scores, size_t scores_stride) const {
  const auto& prepared = static_cast<const CpuQueries&>(queries);
  CellCursor cursor(cells);
  Tiles tiles;
  Scores padded;
  while (!cursor.done()) {
    GatherTiles(/*with_values=*/false, &cursor, &tiles);
    const uint32_t begin = tiles.token_begin, end = tiles.token_end;
    const bool whole = begin == 0 && end % kLanes == 0;
    for (uint32_t first = 0; first < prepared.num_queries(); first += kQueryTile) {
      const uint32_t count = std::min(kQueryTile, prepared.num_queries() - first);
      float* out = scores + first * scores_stride;
      if (whole) {
        ScoreTogether(tiles, first == 0, prepared, first, count, out, scores_stride);
        continue;
      }
      ScoreTogether(tiles, first == 0, prepared, first, count, padded.of[0], Scores::kTokens);
      for (uint32_t q = 0; q < count; ++q) {
        std::copy_n(padded.of[q] + begin, end - begin, out + q * scores_stride);
      }
    }
    scores += end - begin;
  }
}

}  // namespace sketchkv
