#include <algorithm>
#include <array>
#include <limits>
#include <memory>
#include <vector>

#include "kernels/cpu/cpu_tiles.h"
#include "kernels/exact_math.h"

namespace sketchkv {
namespace {

// Partial outputs are kept divided by 2^20, so that values near the largest float can be summed
// over a million tokens.
constexpr int kValueDomain = 20;

// Fractions of multiples of the golden ratio: any run of them is spread evenly.
std::array<float, kDitherTiles * kLanes> MakeDither() {
  std::array<float, kDitherTiles * kLanes> dither;
  double x = 0.5;
  for (float& d : dither) {
    d = static_cast<float>(x - 0.5);
    x += 0.6180339887498949;
    if (x >= 1.0) x -= 1.0;
  }
  return dither;
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
  const bool codes = profile_.value_codec != ValueCodec::kRaw;
  CellCursor cursor(cells);
  Tiles tiles;
  Scores scores;
  while (!cursor.done()) {
    GatherTiles(/*with_values=*/codes, &cursor, &tiles);
    for (uint32_t first = 0; first < prepared.num_queries(); first += kQueryTile) {
      scores.num_queries = std::min(kQueryTile, prepared.num_queries() - first);
      AttendTogether(tiles, prepared, first, options, &scores, partial);
    }
  }
}

void CpuCellCodec::AttendTogether(const Tiles& tiles, const CpuQueries& queries,
                                  uint32_t first_query, const AttentionOptions& options,
                                  Scores* scores, AttentionPartial* partial) const {
  ScoreTogether(tiles, /*prefetch=*/first_query == 0, queries, first_query, scores->num_queries,
                scores->of[0], Scores::kTokens);
  const uint32_t dim = value_rows();
  float* out[kQueryTile] = {};
  for (uint32_t q = 0; q < scores->num_queries; ++q) {
    const size_t index = first_query + q;
    out[q] = partial->out.data() + index * dim;
    kernels_.softmax({scores->of[q], tiles.token_begin, tiles.token_end, options.softmax_scale,
                      options.logit_softcap, &partial->max[index], &partial->sum[index], out[q],
                      dim});
  }
  if (profile_.value_codec == ValueCodec::kRaw) return AttendRawValues(tiles, *scores, out);
  AttendCodesArgs args{};
  args.groups = value_groups_.data();
  args.num_groups = static_cast<uint32_t>(value_groups_.size());
  args.lines = tiles.lines;
  args.num_tiles = tiles.num_tiles;
  args.num_queries = scores->num_queries;
  std::copy_n(out, kQueryTile, args.out);
  if (profile_.value_codec == ValueCodec::kMinMax) return AttendMinMax(tiles, scores, args);
  WeighTokens(tiles, scores, /*offset=*/0, /*zeros=*/nullptr, &args);
  kernels_.attend_codes(args);
}

void CpuCellCodec::AttendRawValues(const Tiles& tiles, const Scores& scores,
                                   float* const* out) const {
  uint32_t token = tiles.token_begin;
  for (const CellTokens& tokens : std::span(tiles.pieces).first(tiles.num_pieces)) {
    kernels_.attend_rows({StoredValueRows(reinterpret_cast<const uint8_t*>(tokens.cell)),
                          layout_.value_dim,
                          tokens.token_begin,
                          tokens.token_end,
                          scores.num_queries,
                          scores.of[0] + token,
                          Scores::kTokens,
                          PowerOfTwo(-kValueDomain),
                          {out[0], out[1], out[2], out[3]}});
    token += tokens.token_end - tokens.token_begin;
  }
}

// Of all queries. zeros: what each adds to all channels for its zero points; null where the scales
// have none.
void CpuCellCodec::WeighTokens(const Tiles& tiles, Scores* scores, size_t offset, float* zeros,
                               AttendCodesArgs* args) const {
  static const std::array<float, kDitherTiles* kLanes> dither = MakeDither();
  float total[kQueryTile], zero_sums[kQueryTile];
  WeighTokensArgs weigh{};
  weigh.num_queries = args->num_queries;
  weigh.weights = scores->of[0];
  weigh.stride = Scores::kTokens;
  weigh.scales = tiles.value_scales;
  weigh.offset = offset;
  weigh.has_zeros = zeros != nullptr;
  weigh.num_tiles = tiles.num_tiles;
  weigh.num_digits = args->num_digits = value_digits_;
  weigh.dither = dither.data();
  weigh.digits = scores->digits[0];
  weigh.digits_stride = sizeof(scores->digits[0]);
  weigh.largest = args->largest;
  weigh.total = total;
  weigh.zeros = zero_sums;
  kernels_.weigh_tokens(weigh);
  const auto most = static_cast<float>(value_digits_ == 1 ? kMaxDigit : kMaxDigits);
  for (uint32_t q = 0; q < args->num_queries; ++q) {
    args->digits[q] = scores->digits[q];
    args->largest[q] *= PowerOfTwo(-kValueDomain);
    if (zeros == nullptr) continue;
    // 8-bit codes are taken less 128.
    const float offset_sum = profile_.value_bits == 8 ? 128.0f * total[q] : 0.0f;
    zeros[q] = (zero_sums[q] * kZeroPointUnit + offset_sum) / most * args->largest[q];
  }
}

// Group by group of channels, since each has scales of its own: sum w s (code + zero / 16).
void CpuCellCodec::AttendMinMax(const Tiles& tiles, Scores* scores, AttendCodesArgs args) const {
  const uint32_t size = profile_.value_group_size;
  for (uint32_t g = 0; g < format_.value_groups; ++g) {
    CodeGroup group = value_groups_[0];
    group.row = g * size;
    group.rows = std::min(size, layout_.value_dim - group.row);
    group.place = ValueLines(group.row, group.bits);  // groups begin at whole lines
    args.groups = &group;
    args.num_groups = 1;
    float zeros[kQueryTile];
    WeighTokens(tiles, scores, size_t{g} * kLineBytes, zeros, &args);
    for (uint32_t q = 0; q < args.num_queries; ++q) {
      for (uint32_t c = 0; c < group.rows; ++c) args.out[q][group.row + c] += zeros[q];
    }
    kernels_.attend_codes(args);
  }
}

void CpuCellCodec::Finish(const AttentionPartial& partial, float* out, float* lse) const {
  const uint32_t dim = layout_.value_dim;
  const uint32_t rows = value_rows();
  const auto num_queries = static_cast<uint32_t>(partial.max.size());
  Scratch normal(partial.out.size());
  for (uint32_t q = 0; q < num_queries; ++q) {
    const float sum = partial.sum[q];
    const float* from = partial.out.data() + size_t{q} * rows;
    float* to = normal.data() + size_t{q} * rows;
    lse[q] = -std::numeric_limits<float>::infinity();
    if (!(sum > 0.0f)) {
      std::fill_n(to, rows, 0.0f);
      continue;
    }
    lse[q] = static_cast<float>(partial.max[q] + ExactLog(sum));
    for (uint32_t r = 0; r < rows; ++r) to[r] = from[r] / sum;
  }
  if (value_projection_ == nullptr) {
    std::copy(normal.begin(), normal.end(), out);
  } else {
    TurnBack(normal.data(), num_queries, out);
  }
  const float* mean = value_mean();
  const float domain = PowerOfTwo(kValueDomain);
  for (uint32_t q = 0; q < num_queries; ++q) {
    float* row = out + size_t{q} * dim;
    for (uint32_t c = 0; c < dim; ++c) row[c] *= domain;
    if (mean == nullptr || !(partial.sum[q] > 0.0f)) continue;
    for (uint32_t c = 0; c < dim; ++c) row[c] += mean[c];
  }
}

// [num_queries][value_rows] of the codec's domain to channels; sixteen at a time are lanes of a
// tile.
void CpuCellCodec::TurnBack(const float* rows, uint32_t num_queries, float* out) const {
  const uint32_t dim = layout_.value_dim;
  const size_t row_bytes = size_t{value_rows()} * sizeof(float);
  const auto fp32 = static_cast<uint32_t>(DType::kFp32);
  Scratch tile(size_t{value_rows()} * kLanes);
  Scratch turned(size_t{dim} * kLanes);
  for (uint32_t first = 0; first < num_queries; first += kLanes) {
    const uint32_t count = std::min(kLanes, num_queries - first);
    const auto* bytes = reinterpret_cast<const uint8_t*>(rows) + first * row_bytes;
    kernels_.load_tile({bytes, row_bytes, fp32, nullptr}, count, value_rows(), tile.data());
    kernels_.back_project(value_projection_->Args(), tile.data(), turned.data());
    kernels_.store_tile(turned.data(), count, dim,
                        reinterpret_cast<uint8_t*>(out + size_t{first} * dim), dim * sizeof(float),
                        fp32);
  }
}

}  // namespace sketchkv
