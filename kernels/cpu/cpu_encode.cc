#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <memory>

#include "absl/strings/str_cat.h"
#include "kernels/base/checked_math.h"
#include "kernels/base/status_macros.h"
#include "kernels/cpu/cpu_codec.h"
#include "kernels/exact_math.h"

namespace sketchkv {
namespace {

constexpr uint32_t kInfinityBits = 0x7F800000;

// What a cell whose largest number has the bits `largest` is divided by, so that no square
// overflows and those of tokens far below the others do not vanish. Most cells need nothing.
int CellExponent(uint32_t largest) {
  constexpr int kSmallest = -12, kLargest = 32;
  if (largest == 0) return 0;
  const int exponent = FloorLog2(std::bit_cast<float>(largest));
  return exponent >= kSmallest && exponent <= kLargest ? 0 : exponent;
}

// The first non-finite number in token order, as an error.
absl::Status NotFinite(absl::string_view what, const float* tiles, uint32_t dim,
                       uint32_t num_tokens) {
  for (uint32_t token = 0; token < num_tokens; ++token) {
    const float* tile = tiles + size_t{token / kLanes} * dim * kLanes;
    for (uint32_t c = 0; c < dim; ++c) {
      const float x = tile[size_t{c} * kLanes + token % kLanes];
      if (std::isfinite(x)) continue;
      return absl::InvalidArgumentError(absl::StrCat(what, ": token ", token, " channel ", c,
                                                     " is ", std::isnan(x) ? "NaN" : "infinite"));
    }
  }
  return absl::InternalError("no number that is not finite");
}

void CopyRows(RowsView rows, uint32_t num_tokens, size_t row_bytes, uint8_t* out) {
  for (uint32_t token = 0; token < num_tokens; ++token) {
    std::memcpy(out + token * row_bytes, rows.data + token * rows.stride_bytes, row_bytes);
  }
}

}  // namespace

void PrefetchTile(const RowsArgs& rows, uint32_t dim, uint32_t token, uint32_t num_tokens) {
  const size_t row_bytes = dim * DTypeBytes(static_cast<DType>(rows.dtype));
  for (const uint32_t end = std::min(token + kLanes, num_tokens); token < end; ++token) {
    const uint8_t* row = rows.data + token * rows.stride;
    for (size_t at = 0; at < row_bytes; at += kLineBytes) __builtin_prefetch(row + at);
  }
}

void CodeScales(ScaleRule rule, const float* energy, const float* dot, const float* square,
                float row_energy, float* scales) {
  for (uint32_t i = 0; i < kLanes; ++i) {
    const bool exact = rule == ScaleRule::kExact;
    const float over = exact ? dot[i] : square[i] * row_energy;
    scales[i] = over > 0.0f ? (exact ? energy[i] : dot[i]) / over : 0.0f;
  }
}

absl::Status CpuCellCodec::Encode(RowsView keys, RowsView values, uint32_t num_tokens,
                                  std::span<std::byte> cell) const {
  if (cell.size() != format_.cell_bytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("cell has ", cell.size(), " bytes, must have ", format_.cell_bytes));
  }
  if (num_tokens < 1 || num_tokens > layout_.block_tokens) {
    return absl::InvalidArgumentError(
        absl::StrCat("num_tokens is ", num_tokens, ", must be 1-", layout_.block_tokens));
  }
  auto* bytes = reinterpret_cast<uint8_t*>(cell.data());
  std::memset(bytes, 0, format_.cell_bytes);
  const size_t padded = RoundUp(num_tokens, kLanes);
  const auto tiles = std::make_unique_for_overwrite<float[]>(
      padded * std::max(layout_.head_dim, layout_.value_dim));
  int exponent = 0;
  // The caller's memory may change meanwhile (a client writes to it through shared memory), so
  // every number is loaded from it once: what is checked is what is stored.
  const bool raw_keys = profile_.key_codec == KeyCodec::kRaw;
  if (raw_keys) CopyRows(keys, num_tokens, layout_.key_row_bytes(), bytes + format_.raw_keys);
  SKETCHKV_RETURN_IF_ERROR(LoadTiles(raw_keys ? StoredKeyRows(bytes) : KeyRows(keys), "keys",
                                     layout_.head_dim, key_mean(), num_tokens, tiles.get(),
                                     &exponent));
  if (!raw_keys) EncodeKeys(tiles.get(), num_tokens, exponent, ValueRows(values), bytes);
  if (layout_.value_source == ValueSource::kKeyPrefix) return absl::OkStatus();
  const bool raw_values = profile_.value_codec == ValueCodec::kRaw;
  if (raw_values) CopyRows(values, num_tokens, layout_.value_row_bytes(), bytes + format_.values);
  SKETCHKV_RETURN_IF_ERROR(LoadTiles(raw_values ? StoredValueRows(bytes) : ValueRows(values),
                                     "values", layout_.value_dim, value_mean(), num_tokens,
                                     tiles.get(), &exponent));
  if (raw_values) return absl::OkStatus();
  if (profile_.value_codec == ValueCodec::kMinMax) {
    EncodeMinMax(tiles.get(), num_tokens, exponent, bytes);
  } else {
    EncodeRotated(tiles.get(), num_tokens, exponent, bytes);
  }
  return absl::OkStatus();
}

absl::Status CpuCellCodec::LoadTiles(const RowsArgs& rows, absl::string_view what, uint32_t dim,
                                     const float* mean, uint32_t num_tokens, float* tiles,
                                     int* exponent) const {
  const size_t tile_floats = size_t{dim} * kLanes;
  uint32_t largest = 0;
  float* tile = tiles;
  PrefetchTile(rows, dim, 0, num_tokens);
  for (uint32_t token = 0; token < num_tokens; token += kLanes, tile += tile_floats) {
    PrefetchTile(rows, dim, token + kLanes, num_tokens);
    RowsArgs tile_rows = rows;
    tile_rows.data += token * rows.stride;
    tile_rows.mean = mean;
    const uint32_t count = std::min(kLanes, num_tokens - token);
    largest = std::max(largest, kernels_.load_tile(tile_rows, count, dim, tile));
  }
  if (largest >= kInfinityBits) return NotFinite(what, tiles, dim, num_tokens);
  *exponent = CellExponent(largest);
  if (*exponent != 0) kernels_.multiply(tiles, tile - tiles, MakePow2(-*exponent));
  return absl::OkStatus();
}

void CpuCellCodec::StoreScales(float* x, int exponent, uint8_t* out) const {
  if (exponent != 0) kernels_.multiply(x, kLanes, MakePow2(exponent));
  kernels_.store_scales(x, kLanes, out);
  kernels_.load_scales(out, kLanes, x);
  if (exponent != 0) kernels_.multiply(x, kLanes, MakePow2(-exponent));
}

void CpuCellCodec::EncodeMinMax(const float* tiles, uint32_t num_tokens, int exponent,
                                uint8_t* cell) const {
  for (uint32_t first = 0; first < num_tokens; first += kLanes) {
    const uint32_t tile = first / kLanes;
    // Tokens that are not there leave zeros: the ranges of a row of zeros are 0.
    kernels_.value_ranges({value_groups_.data(), layout_.value_dim, profile_.value_group_size,
                           format_.value_groups, std::min(kLanes, num_tokens - first),
                           MakePow2(exponent), MakePow2(-exponent),
                           tiles + size_t{tile} * layout_.value_dim * kLanes,
                           cell + format_.ranges + size_t{tile} * format_.value_groups * kLineBytes,
                           cell + format_.value_offset(tile)});
  }
}

void CpuCellCodec::EncodeRotated(float* tiles, uint32_t num_tokens, int exponent,
                                 uint8_t* cell) const {
  const ProjectionArgs projection = value_projection_->Args();
  const bool basis = profile_.value_codec == ValueCodec::kBasis;
  std::vector<float> projected(RoundUp(projection.rows, layout_.value_dim) * kLanes);
  for (uint32_t first = 0; first < num_tokens; first += kLanes) {
    const uint32_t tile = first / kLanes;
    const float* values = tiles + size_t{tile} * layout_.value_dim * kLanes;
    const CodesTile codes{value_groups_, value_unit_energy_, &projection, basis,
                          values,        projected.data()};
    float scales[kLanes];
    EncodeCodes(kernels_.encode_values, codes, profile_.value_scale_rule,
                std::min(kLanes, num_tokens - first), cell + format_.value_offset(tile), scales);
    StoreScales(scales, exponent, cell + format_.scale_offset(tile, format_.value_scale_row));
  }
}

void CpuCellCodec::EncodeCodes(void (*encode)(const EncodeCodesArgs&), const CodesTile& tile,
                               ScaleRule rule, uint32_t num_tokens, uint8_t* out,
                               float* scales) const {
  const ProjectionArgs& projection = *tile.projection;
  kernels_.project_tile(projection, tile.x, tile.projected);
  // A basis may leave coordinates out; exact is the part that is stored. Its rows have the norm 1,
  // those of a rotation sqrt(d).
  const float row_energy = tile.basis ? 1.0f : static_cast<float>(projection.dim);
  float energy[kLanes], projected_energy[kLanes], dot[kLanes], square[kLanes];
  kernels_.token_energy(tile.basis ? tile.projected : tile.x,
                        tile.basis ? projection.rows : projection.dim, energy);
  for (uint32_t i = 0; i < kLanes; ++i) projected_energy[i] = energy[i] * row_energy;
  encode({tile.groups.data(), static_cast<uint32_t>(tile.groups.size()), num_tokens,
          tile.unit_energy, tile.projected, projected_energy, out, dot, square});
  CodeScales(rule, energy, dot, square, row_energy, scales);
}

}  // namespace sketchkv
