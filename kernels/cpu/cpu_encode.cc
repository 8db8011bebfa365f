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

// The largest number, divided by 2^exponent, lies in [2^14, 2^15). Below 0 unless all are 0, since
// tiles are divided by the cell's power of two.
int HalfExponent(float largest) { return largest == 0.0f ? 0 : FloorLog2(largest) - 14; }

void CopyRows(RowsView rows, uint32_t num_tokens, size_t row_bytes, uint8_t* out) {
  for (uint32_t token = 0; token < num_tokens; ++token) {
    std::memcpy(out + token * row_bytes, rows.data + token * rows.stride_bytes, row_bytes);
  }
}

}  // namespace

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
  CellHeader header{};
  header.tag_and_version = static_cast<uint8_t>(kCellTag | kFormatVersion);
  header.codecs = CodecsByte(profile_);
  header.num_tokens = static_cast<uint16_t>(num_tokens);

  int exponent = 0;
  SKETCHKV_RETURN_IF_ERROR(
      LoadTiles(KeyRows(keys), "keys", layout_.head_dim, num_tokens, tiles.get(), &exponent));
  if (profile_.key_codec == KeyCodec::kRaw) {
    CopyRows(keys, num_tokens, layout_.key_row_bytes(), bytes + format_.raw_keys);
  } else {
    EncodeKeys(tiles.get(), static_cast<uint32_t>(padded / kLanes), exponent, &header, bytes);
  }
  if (layout_.value_source == ValueSource::kSeparate) {
    SKETCHKV_RETURN_IF_ERROR(LoadTiles(ValueRows(values), "values", layout_.value_dim, num_tokens,
                                       tiles.get(), &exponent));
    if (profile_.value_codec == ValueCodec::kRaw) {
      CopyRows(values, num_tokens, layout_.value_row_bytes(), bytes + format_.values);
    } else {
      EncodeValues(tiles.get(), num_tokens, exponent, &header, bytes);
    }
  }
  std::memcpy(bytes, &header, sizeof(header));
  return absl::OkStatus();
}

absl::Status CpuCellCodec::LoadTiles(const RowsArgs& rows, absl::string_view what, uint32_t dim,
                                     uint32_t num_tokens, float* tiles, int* exponent) const {
  const size_t tile_floats = size_t{dim} * kLanes;
  uint32_t largest = 0;
  float* tile = tiles;
  for (uint32_t token = 0; token < num_tokens; token += kLanes, tile += tile_floats) {
    RowsArgs tile_rows = rows;
    tile_rows.data += token * rows.stride;
    kernels_.load_tile(tile_rows, std::min(kLanes, num_tokens - token), dim, tile);
    largest = std::max(largest, kernels_.max_abs_bits(tile, tile_floats));
  }
  if (largest >= kInfinityBits) return NotFinite(what, tiles, dim, num_tokens);
  *exponent = largest == 0 ? 0 : FloorLog2(std::bit_cast<float>(largest));
  kernels_.multiply(tiles, tile - tiles, MakePow2(-*exponent));
  return absl::OkStatus();
}

int CpuCellCodec::StoreHalves(float* values, size_t count, uint8_t* out) const {
  const auto largest = std::bit_cast<float>(kernels_.max_abs_bits(values, count));
  const int exponent = HalfExponent(largest);
  kernels_.multiply(values, count, MakePow2(-exponent));
  kernels_.to_half(values, count, out);
  kernels_.from_half(out, count, values);
  kernels_.multiply(values, count, MakePow2(exponent));
  return exponent;
}

void CpuCellCodec::EncodeValues(const float* tiles, uint32_t num_tokens, int exponent,
                                CellHeader* header, uint8_t* cell) const {
  const uint32_t num_tiles = static_cast<uint32_t>(RoundUp(num_tokens, kLanes) / kLanes);
  const size_t tile_floats = size_t{layout_.value_dim} * kLanes;
  const size_t tile_ranges = size_t{format_.value_groups} * 2 * kLanes;
  const size_t count = num_tiles * tile_ranges;
  std::vector<float> ranges(count);
  ValueCodesArgs args = ValueCodes(cell, 0, 0);
  for (uint32_t tile = 0; tile < num_tiles; ++tile) {
    kernels_.value_ranges(args, tiles + tile * tile_floats, ranges.data() + tile * tile_ranges);
  }
  // Scales and minima alternate in one line but have an exponent each.
  float largest_scale = 0.0f;
  float largest_minimum = 0.0f;
  for (size_t i = 0; i < count; ++i) {
    float& largest = i % (2 * kLanes) < kLanes ? largest_scale : largest_minimum;
    largest = std::max(largest, std::fabs(ranges[i]));
  }
  const int scale_exponent = HalfExponent(largest_scale);
  const int minimum_exponent = HalfExponent(largest_minimum);
  for (size_t i = 0; i < count; i += 2 * kLanes) {
    kernels_.multiply(ranges.data() + i, kLanes, MakePow2(-scale_exponent));
    kernels_.multiply(ranges.data() + i + kLanes, kLanes, MakePow2(-minimum_exponent));
  }
  kernels_.to_half(ranges.data(), count, cell + format_.value_lines);
  header->value_exponent = HeaderExponent(scale_exponent, exponent);
  header->minimum_exponent = HeaderExponent(minimum_exponent, exponent);

  args = ValueCodes(cell, scale_exponent, minimum_exponent);
  for (uint32_t tile = 0; tile < num_tiles; ++tile) {
    const uint32_t first = tile * kLanes;
    kernels_.quantize_values(args, tiles + tile * tile_floats, std::min(kLanes, num_tokens - first),
                             cell + format_.values + first * format_.value_row_bytes);
    args.lines += size_t{format_.value_groups} * kLineBytes;
  }
}

}  // namespace sketchkv
