#include <algorithm>
#include <bit>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"
#include "kernels/cpu/cpu_codec.h"

namespace sketchkv {
namespace {

absl::Status Mismatch(absl::string_view field, int64_t value, absl::string_view bound) {
  return absl::InvalidArgumentError(
      absl::StrCat("cell ", field, " is ", value, ", must be ", bound));
}

absl::Status CheckEqual(absl::string_view field, uint64_t value, uint64_t wanted) {
  if (value == wanted) return absl::OkStatus();
  return Mismatch(field, static_cast<int64_t>(value), absl::StrCat(wanted));
}

absl::Status CheckExponent(absl::string_view field, int exponent) {
  if (exponent >= kMinExponent && exponent <= kMaxExponent) return absl::OkStatus();
  return Mismatch(field, exponent, absl::StrCat(kMinExponent, " to ", kMaxExponent));
}

// Bytes [begin, end) of the cell stand for nothing.
absl::Status CheckZeros(absl::string_view field, const uint8_t* cell, size_t begin, size_t end) {
  const uint8_t* bad =
      std::find_if(cell + begin, cell + end, [](uint8_t byte) { return byte != 0; });
  if (bad == cell + end) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("cell padding of ", field, " at byte ", bad - cell,
                                                 " is ", *bad, ", must be 0"));
}

// `rows` records of sixteen lanes of `lane_bytes`: those of tokens that are not there hold zeros.
absl::Status CheckLanes(absl::string_view field, const uint8_t* cell, size_t begin,
                        uint32_t num_tiles, size_t rows_per_tile, size_t lane_bytes,
                        uint32_t num_tokens) {
  const size_t row_bytes = kLanes * lane_bytes;
  for (uint32_t tile = num_tokens / kLanes; tile < num_tiles; ++tile) {
    const uint32_t first = tile == num_tokens / kLanes ? num_tokens % kLanes : 0;
    for (size_t row = 0; row < rows_per_tile; ++row) {
      const size_t at = begin + (tile * rows_per_tile + row) * row_bytes;
      SKETCHKV_RETURN_IF_ERROR(CheckZeros(field, cell, at + first * lane_bytes, at + row_bytes));
    }
  }
  return absl::OkStatus();
}

// fp16 numbers: finite, and not negative where they are scales.
absl::Status CheckHalves(absl::string_view field, const uint8_t* cell, size_t begin, size_t count,
                         bool is_scale) {
  for (size_t i = 0; i < count; ++i) {
    const uint32_t bits = ReadU16(cell + begin + 2 * i);
    if ((bits & 0x7C00) == 0x7C00) {
      return absl::InvalidArgumentError(absl::StrCat("cell ", field, " ", i, " has the bits ", bits,
                                                     ", must be finite (below ", 0x7C00, ")"));
    }
    if (is_scale && bits > 0x7FFF) {
      return absl::InvalidArgumentError(absl::StrCat("cell ", field, " ", i, " has the bits ", bits,
                                                     ", must not be negative (below ", 0x8000,
                                                     ")"));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckChannels(const uint8_t* cell, size_t begin, uint32_t count, uint32_t head_dim) {
  int64_t previous = -1;
  for (uint32_t o = 0; o < count; ++o) {
    const uint32_t channel = ReadU16(cell + begin + 2 * o);
    if (channel >= head_dim || channel <= previous) {
      return Mismatch(absl::StrCat("outlier channel ", o), channel,
                      absl::StrCat("above ", previous, " and below ", head_dim));
    }
    previous = channel;
  }
  return absl::OkStatus();
}

absl::Status CheckHeader(const CellHeader& header, const CodecProfile& profile,
                         uint32_t num_tokens) {
  SKETCHKV_RETURN_IF_ERROR(CheckEqual("tag", header.tag_and_version & 0xF0u, kCellTag));
  SKETCHKV_RETURN_IF_ERROR(
      CheckEqual("format version", header.tag_and_version & 0x0Fu, kFormatVersion));
  SKETCHKV_RETURN_IF_ERROR(CheckEqual("codecs", header.codecs, CodecsByte(profile)));
  SKETCHKV_RETURN_IF_ERROR(CheckEqual("num_tokens", header.num_tokens, num_tokens));
  SKETCHKV_RETURN_IF_ERROR(CheckExponent("key exponent", header.key_exponent));
  SKETCHKV_RETURN_IF_ERROR(CheckExponent("outlier exponent", header.outlier_exponent));
  SKETCHKV_RETURN_IF_ERROR(CheckExponent("value exponent", header.value_exponent));
  SKETCHKV_RETURN_IF_ERROR(CheckExponent("minimum exponent", header.minimum_exponent));
  return CheckEqual("reserved", header.reserved, 0);
}

// Raw rows: finite numbers, zeros behind the last token.
absl::Status CheckRows(const KernelTable& kernels, absl::string_view field, const uint8_t* cell,
                       const RowsArgs& rows, uint32_t dim, uint32_t num_tokens, size_t rows_end) {
  std::vector<float> tile(size_t{dim} * kLanes);
  RowsArgs at = rows;
  for (uint32_t token = 0; token < num_tokens; token += kLanes) {
    kernels.load_tile(at, std::min(kLanes, num_tokens - token), dim, tile.data());
    if (kernels.max_abs_bits(tile.data(), tile.size()) >= 0x7F800000) {
      return absl::InvalidArgumentError(absl::StrCat("cell ", field, " of tokens from ", token,
                                                     " to ", token + kLanes - 1,
                                                     " hold a number that is not finite"));
    }
    at.data += kLanes * rows.stride;
  }
  const size_t used = static_cast<size_t>(rows.data - cell) + num_tokens * rows.stride;
  return CheckZeros(field, cell, used, rows_end);
}

absl::Status CheckSketch(const uint8_t* cell, const CellFormat& format, const CodecProfile& profile,
                         uint32_t head_dim, uint32_t num_tokens) {
  const uint32_t tiles = format.num_tiles;
  const uint32_t outliers = profile.num_outliers;
  SKETCHKV_RETURN_IF_ERROR(
      CheckHalves("key scale", cell, format.key_scales, size_t{tiles} * kLanes, true));
  SKETCHKV_RETURN_IF_ERROR(
      CheckLanes("key scales", cell, format.key_scales, tiles, 1, 2, num_tokens));
  SKETCHKV_RETURN_IF_ERROR(
      CheckLanes("signs", cell, format.signs, tiles, format.sign_words, 4, num_tokens));
  size_t small_end = format.key_scales + size_t{2} * tiles * kLanes;
  if (profile.outlier_method == OutlierMethod::kSketch) {
    const size_t scales = format.outlier_scales;
    small_end = scales + size_t{2} * tiles * kLanes;
    SKETCHKV_RETURN_IF_ERROR(
        CheckHalves("outlier scale", cell, scales, size_t{tiles} * kLanes, true));
    SKETCHKV_RETURN_IF_ERROR(CheckLanes("outlier scales", cell, scales, tiles, 1, 2, num_tokens));
    SKETCHKV_RETURN_IF_ERROR(CheckLanes("outlier signs", cell, format.outlier_signs, tiles,
                                        format.outlier_words, 4, num_tokens));
  } else if (profile.outlier_method == OutlierMethod::kResidual) {
    SKETCHKV_RETURN_IF_ERROR(
        CheckHalves("residual scale", cell, format.residual_scales, outliers, true));
    SKETCHKV_RETURN_IF_ERROR(
        CheckLanes("residuals", cell, format.residuals, tiles, outliers, 1, num_tokens));
  }
  // Groups that hold a token have channels; the others are padding.
  const uint32_t group_tokens = std::max(1u, profile.outlier_group_tokens);
  for (uint32_t group = 0; group < format.outlier_groups; ++group) {
    const size_t at = format.outlier_channels + size_t{2} * group * outliers;
    SKETCHKV_RETURN_IF_ERROR(
        group * group_tokens < num_tokens
            ? CheckChannels(cell, at, outliers, head_dim)
            : CheckZeros("outlier channels", cell, at, at + size_t{2} * outliers));
  }
  SKETCHKV_RETURN_IF_ERROR(CheckZeros("key scales", cell, small_end, format.signs));
  return CheckZeros("keys", cell, format.keys_end, format.values);
}

absl::Status CheckCodes(const uint8_t* cell, const CellFormat& format, uint32_t num_tokens) {
  const size_t used = format.values + num_tokens * format.value_row_bytes;
  SKETCHKV_RETURN_IF_ERROR(CheckZeros("value codes", cell, used, format.value_lines));
  const size_t halves_per_line = kLineBytes / 2;
  const size_t lines = size_t{format.num_tiles} * format.value_groups;
  for (size_t line = 0; line < lines; ++line) {
    const size_t at = format.value_lines + line * kLineBytes;
    SKETCHKV_RETURN_IF_ERROR(CheckHalves("value scale", cell, at, halves_per_line / 2, true));
    SKETCHKV_RETURN_IF_ERROR(
        CheckHalves("value minimum", cell, at + kLineBytes / 2, halves_per_line / 2, false));
  }
  return CheckLanes("value scales and minima", cell, format.value_lines, format.num_tiles,
                    size_t{2} * format.value_groups, 2, num_tokens);
}

}  // namespace

absl::Status CpuCellCodec::Validate(std::span<const std::byte> cell, uint32_t num_tokens) const {
  if (cell.size() != format_.cell_bytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("cell has ", cell.size(), " bytes, must have ", format_.cell_bytes));
  }
  if (num_tokens < 1 || num_tokens > layout_.block_tokens) {
    return absl::InvalidArgumentError(
        absl::StrCat("num_tokens is ", num_tokens, ", must be 1-", layout_.block_tokens));
  }
  const auto* bytes = reinterpret_cast<const uint8_t*>(cell.data());
  SKETCHKV_RETURN_IF_ERROR(CheckHeader(ReadHeader(bytes), profile_, num_tokens));
  if (profile_.key_codec == KeyCodec::kSketch) {
    SKETCHKV_RETURN_IF_ERROR(CheckSketch(bytes, format_, profile_, layout_.head_dim, num_tokens));
  } else {
    SKETCHKV_RETURN_IF_ERROR(CheckZeros("header", bytes, sizeof(CellHeader), format_.raw_keys));
    SKETCHKV_RETURN_IF_ERROR(CheckRows(kernels_, "keys", bytes, StoredKeyRows(bytes),
                                       layout_.head_dim, num_tokens, format_.values));
  }
  if (profile_.value_codec == ValueCodec::kMinMax) return CheckCodes(bytes, format_, num_tokens);
  if (layout_.value_source == ValueSource::kKeyPrefix) return absl::OkStatus();
  return CheckRows(kernels_, "values", bytes, StoredValueRows(bytes), layout_.value_dim, num_tokens,
                   format_.cell_bytes);
}

}  // namespace sketchkv
