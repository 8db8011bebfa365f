#include <algorithm>
#include <limits>
#include <vector>

#include "kernels/base/checked_math.h"
#include "kernels/cpu/cpu_scores.h"
#include "kernels/exact_math.h"

namespace sketchkv {
namespace {

// Partial outputs are kept divided by 2^20, so that values near the largest float can be summed
// over a million tokens.
constexpr int kValueDomain = 20;

// Cells are attended together up to so many tiles: enough to pay for what is done once for all of
// them, few enough to stay in the first cache between scores and values.
constexpr uint32_t kTilesTogether = 16;

const uint8_t* Bytes(const std::byte* cell) { return reinterpret_cast<const uint8_t*>(cell); }

uint32_t NumTiles(const CellTokens& tokens) {
  return static_cast<uint32_t>(RoundUp(tokens.token_end, kLanes) / kLanes) -
         tokens.token_begin / kLanes;
}

// How many of the first cells are attended together: their tokens fill whole tiles where cells
// meet.
size_t NumTogether(std::span<const CellTokens> cells) {
  uint32_t tiles = NumTiles(cells[0]);
  size_t i = 1;
  for (; i < cells.size(); ++i) {
    if (cells[i - 1].token_end % kLanes != 0 || cells[i].token_begin % kLanes != 0) break;
    tiles += NumTiles(cells[i]);
    if (tiles > kTilesTogether) break;
  }
  return i;
}

}  // namespace

AttentionPartial CpuCellCodec::NewPartial(uint32_t num_queries) const {
  AttentionPartial partial;
  partial.max.assign(num_queries, -std::numeric_limits<float>::infinity());
  partial.sum.assign(num_queries, 0.0f);
  partial.out.assign(size_t{num_queries} * value_rows(), 0.0f);
  return partial;
}

void CpuCellCodec::Attend(std::span<const CellTokens> cells, const PreparedQueries& queries,
                          const AttentionOptions& options, AttentionPartial* partial) const {
  const auto& prepared = static_cast<const CpuQueries&>(queries);
  const size_t ahead = CellsAhead();
  Scores scores;
  while (!cells.empty()) {
    if (cells[0].token_begin >= cells[0].token_end) {
      cells = cells.subspan(1);
      continue;
    }
    const size_t together = NumTogether(cells);
    for (size_t i = 0; i < together; ++i) PrefetchValues(cells[i].cell);
    for (uint32_t first = 0; first < prepared.num_queries(); first += kQueryTile) {
      scores.num_queries = std::min(kQueryTile, prepared.num_queries() - first);
      AttendTogether(cells.first(together), prepared, first, options, &scores, partial);
    }
    cells = cells.subspan(together);
    for (size_t i = 0; i < std::min(ahead, cells.size()); ++i) PrefetchKeys(cells[i].cell);
  }
}

void CpuCellCodec::AttendTogether(std::span<const CellTokens> cells, const CpuQueries& queries,
                                  uint32_t first_query, const AttentionOptions& options,
                                  Scores* scores, AttentionPartial* partial) const {
  const size_t ahead = CellsAhead();
  const uint32_t begin = cells[0].token_begin % kLanes;
  uint32_t end = begin;
  scores->num_tiles = 0;
  for (size_t i = 0; i < cells.size(); ++i) {
    if (i + ahead < cells.size()) PrefetchKeys(cells[i + ahead].cell);
    ScoreTokens(cells[i], queries, first_query, scores->num_queries,
                scores->of[0] + kLanes * scores->num_tiles, kMaxCellTokens);
    scores->num_tiles += NumTiles(cells[i]);
    end += cells[i].token_end - cells[i].token_begin;
  }
  const uint32_t dim = value_rows();
  float* out[kQueryTile] = {};
  for (uint32_t q = 0; q < scores->num_queries; ++q) {
    const size_t index = first_query + q;
    out[q] = partial->out.data() + index * dim;
    kernels_.softmax({scores->of[q], begin, end, options.softmax_scale, options.logit_softcap,
                      &partial->max[index], &partial->sum[index], out[q], dim});
  }
  if (profile_.value_codec == ValueCodec::kRaw) return AttendRawValues(cells, *scores, out);
  AttendCodes(cells, scores, out);
}

void CpuCellCodec::AttendRawValues(std::span<const CellTokens> cells, const Scores& scores,
                                   float* const* out) const {
  uint32_t token = cells[0].token_begin % kLanes;
  for (const CellTokens& tokens : cells) {
    kernels_.attend_rows({StoredValueRows(Bytes(tokens.cell)),
                          layout_.value_dim,
                          tokens.token_begin,
                          tokens.token_end,
                          scores.num_queries,
                          scores.of[0] + token,
                          kMaxCellTokens,
                          PowerOfTwo(-kValueDomain),
                          {out[0], out[1], out[2], out[3]}});
    token += tokens.token_end - tokens.token_begin;
  }
}

void CpuCellCodec::AttendCodes(std::span<const CellTokens> cells, Scores* scores,
                               float* const* out) const {
  const bool min_max = profile_.value_codec == ValueCodec::kMinMax;
  uint32_t tile = 0;
  for (const CellTokens& tokens : cells) {
    const uint8_t* cell = Bytes(tokens.cell);
    for (uint32_t i = 0; i < NumTiles(tokens); ++i, ++tile) {
      const uint32_t own = tokens.token_begin / kLanes + i;
      scores->lines[tile] = cell + format_.value_offset(own);
      scores->scales[tile] =
          min_max ? cell + format_.ranges + size_t{own} * format_.value_groups * kLineBytes
                  : cell + format_.scale_offset(own, format_.value_scale_row);
    }
  }
  AttendCodesArgs args{};
  args.groups = value_groups_.data();
  args.num_groups = static_cast<uint32_t>(value_groups_.size());
  args.lines = scores->lines;
  args.num_tiles = scores->num_tiles;
  args.num_queries = scores->num_queries;
  std::copy_n(out, kQueryTile, args.out);
  if (min_max) return AttendMinMax(scores, args);
  WeighTokens(scores, /*offset=*/0, /*zeros=*/nullptr, &args);
  kernels_.attend_codes(args);
}

// Of all queries. zeros: what each adds to all channels for its zero points; null where the scales
// have none.
void CpuCellCodec::WeighTokens(Scores* scores, size_t offset, float* zeros,
                               AttendCodesArgs* args) const {
  for (uint32_t q = 0; q < args->num_queries; ++q) {
    float largest = 0.0f, total = 0.0f, zeros_sum = 0.0f;
    kernels_.weigh_tokens({scores->of[q], scores->scales, offset, zeros != nullptr,
                           scores->num_tiles, scores->digits[q], &largest, &total, &zeros_sum});
    args->digits[q] = scores->digits[q];
    args->largest[q] = largest * PowerOfTwo(-kValueDomain);
    if (zeros == nullptr) continue;
    zeros[q] = zeros_sum * kZeroPointUnit;
    // 8-bit codes are taken less 128.
    if (profile_.value_bits == 8) zeros[q] += 128.0f * (total / kMaxDigits) * args->largest[q];
  }
}

// Group by group of channels, since each has scales of its own: sum w s (code + zero / 16).
void CpuCellCodec::AttendMinMax(Scores* scores, AttendCodesArgs args) const {
  const uint32_t size = profile_.value_group_size;
  for (uint32_t g = 0; g < format_.value_groups; ++g) {
    CodeGroup group = value_groups_[0];
    group.row = g * size;
    group.rows = std::min(size, layout_.value_dim - group.row);
    group.place = ValueLines(group.row, group.bits);  // groups begin at whole lines
    args.groups = &group;
    args.num_groups = 1;
    float zeros[kQueryTile];
    WeighTokens(scores, size_t{g} * kLineBytes, zeros, &args);
    for (uint32_t q = 0; q < args.num_queries; ++q) {
      for (uint32_t c = 0; c < group.rows; ++c) args.out[q][group.row + c] += zeros[q];
    }
    kernels_.attend_codes(args);
  }
}

void CpuCellCodec::Finish(const AttentionPartial& partial, float* out, float* lse) const {
  const uint32_t dim = layout_.value_dim;
  const uint32_t rows = value_rows();
  for (size_t q = 0; q < partial.max.size(); ++q) {
    const float sum = partial.sum[q];
    lse[q] = sum > 0.0f ? static_cast<float>(partial.max[q] + ExactLog(sum))
                        : -std::numeric_limits<float>::infinity();
    std::fill_n(out + q * dim, dim, 0.0f);
  }
  // Up to sixteen outputs are lanes of one tile, divided by their sums.
  std::vector<float> tile(size_t{rows} * kLanes);
  std::vector<float> turned(size_t{dim} * kLanes);
  for (size_t first = 0; first < partial.max.size(); first += kLanes) {
    const size_t count = std::min<size_t>(kLanes, partial.max.size() - first);
    std::fill(tile.begin(), tile.end(), 0.0f);
    for (size_t i = 0; i < count; ++i) {
      const float sum = partial.sum[first + i];
      for (uint32_t r = 0; sum > 0.0f && r < rows; ++r) {
        tile[size_t{r} * kLanes + i] = partial.out[(first + i) * rows + r] / sum;
      }
    }
    if (value_projection_ != nullptr) {
      kernels_.back_project(value_projection_->Args(), tile.data(), turned.data());
    } else {
      turned = tile;
    }
    for (size_t i = 0; i < count; ++i) {
      for (uint32_t c = 0; partial.sum[first + i] > 0.0f && c < dim; ++c) {
        const float mean = value_mean() == nullptr ? 0.0f : value_mean()[c];
        out[(first + i) * dim + c] =
            turned[size_t{c} * kLanes + i] * PowerOfTwo(kValueDomain) + mean;
      }
    }
  }
}

}  // namespace sketchkv
