#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <span>
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

// Scales below infinity: rows of sixteen, `stride` bytes apart.
absl::Status CheckScales(absl::string_view field, const uint8_t* cell, size_t begin, size_t rows,
                         size_t row_scales, size_t stride) {
  for (size_t i = 0; i < rows * row_scales; ++i) {
    const uint32_t bits = ReadU16(cell + begin + i / row_scales * stride + i % row_scales * 2);
    if (bits > kLargestScale) {
      return Mismatch(absl::StrCat(field, " ", i), bits, absl::StrCat("at most ", kLargestScale));
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

// Raw rows: finite numbers, zeros behind the last token.
absl::Status CheckRows(const KernelTable& kernels, absl::string_view field, const uint8_t* cell,
                       const RowsArgs& rows, uint32_t dim, uint32_t num_tokens, size_t rows_end) {
  std::vector<float> tile(size_t{dim} * kLanes);
  RowsArgs at = rows;
  for (uint32_t token = 0; token < num_tokens; token += kLanes) {
    if (kernels.load_tile(at, std::min(kLanes, num_tokens - token), dim, tile.data()) >=
        0x7F800000) {
      return absl::InvalidArgumentError(absl::StrCat("cell ", field, " of tokens from ", token,
                                                     " to ", token + kLanes - 1,
                                                     " hold a number that is not finite"));
    }
    at.data += kLanes * rows.stride;
  }
  const size_t used = static_cast<size_t>(rows.data - cell) + num_tokens * rows.stride;
  return CheckZeros(field, cell, used, rows_end);
}

absl::Status CheckMean(const uint8_t* cell, size_t begin, uint32_t dim) {
  for (uint32_t c = 0; c < dim; ++c) {
    const uint32_t bits = ReadU16(cell + begin + size_t{2} * c);
    if ((bits & 0x7F80) != 0x7F80) continue;
    return Mismatch(absl::StrCat("mean of channel ", c, " (bf16)"), bits, "finite");
  }
  return absl::OkStatus();
}

absl::Status CheckOutliers(const uint8_t* cell, const CellFormat& format,
                           const CodecProfile& profile, uint32_t head_dim, uint32_t num_tokens) {
  const uint32_t outliers = profile.num_outliers;
  // Groups that hold a token have channels; the others are padding.
  for (uint32_t group = 0; group < format.outlier_groups; ++group) {
    const size_t at = format.outlier_channels + size_t{2} * group * outliers;
    SKETCHKV_RETURN_IF_ERROR(
        group * profile.outlier_group_tokens < num_tokens
            ? CheckChannels(cell, at, outliers, head_dim)
            : CheckZeros("outlier channels", cell, at, at + size_t{2} * outliers));
  }
  if (profile.outlier_method != OutlierMethod::kResidual) return absl::OkStatus();
  SKETCHKV_RETURN_IF_ERROR(CheckScales("residual scale", cell, format.residual_scales,
                                       format.num_tiles, outliers, size_t{2} * outliers));
  const size_t used = (num_tokens + kLanes - 1) / kLanes * size_t{2} * outliers;
  SKETCHKV_RETURN_IF_ERROR(
      CheckZeros("residual scales", cell, format.residual_scales + used, format.residuals));
  return CheckLanes("residuals", cell, format.residuals, format.num_tiles, outliers, 1, num_tokens);
}

absl::Status CheckPlanes(const uint8_t* cell, const CellFormat& format, const CodecProfile& profile,
                         uint32_t head_dim, uint32_t num_tokens) {
  const uint32_t tiles = format.num_tiles;
  if (profile.centering == Centering::kBlock) {
    SKETCHKV_RETURN_IF_ERROR(CheckMean(cell, format.mean, head_dim));
    SKETCHKV_RETURN_IF_ERROR(
        CheckZeros("mean", cell, format.mean + size_t{2} * head_dim, format.planes));
  } else {
    SKETCHKV_RETURN_IF_ERROR(CheckZeros("scales", cell, format.mean, format.planes));
  }
  SKETCHKV_RETURN_IF_ERROR(CheckLanes("outlier planes", cell, format.outlier_planes, tiles,
                                      format.outlier_words, 4, num_tokens));
  SKETCHKV_RETURN_IF_ERROR(CheckOutliers(cell, format, profile, head_dim, num_tokens));
  return CheckZeros("keys", cell, format.outliers_end, format.values);
}

// Bits that stand for nothing are 0: of absent tokens, of channels that are not there, between and
// behind codes. `pack` packs codes of all ones of a number of tokens, so it gives the others.
template <typename Pack>
absl::Status CheckUnused(absl::string_view field, const uint8_t* cell, size_t begin,
                         uint32_t num_tiles, size_t tile_bytes, uint32_t num_tokens,
                         const Pack& pack) {
  std::vector<uint8_t> used;
  uint32_t packed = kLanes + 1;
  for (uint32_t tile = 0; tile < num_tiles; ++tile) {
    const uint32_t first = tile * kLanes;
    const uint32_t present = num_tokens > first ? std::min(kLanes, num_tokens - first) : 0;
    if (present != packed) {
      used.assign(tile_bytes, 0);
      pack(present, used.data());
      packed = present;
    }
    const size_t at = begin + tile * tile_bytes;
    for (size_t i = 0; i < tile_bytes; ++i) {
      const uint32_t bad = cell[at + i] & ~uint32_t{used[i]};
      if (bad == 0) continue;
      return absl::InvalidArgumentError(
          absl::StrCat("cell padding of ", field, " at byte ", at + i, " is ", bad, ", must be 0"));
    }
  }
  return absl::OkStatus();
}

std::vector<uint8_t> AllOnes(std::span<const CodeGroup> groups) {
  std::vector<uint8_t> codes;
  for (const CodeGroup& group : groups) {
    codes.resize(size_t{group.row + group.rows} * kLanes,
                 static_cast<uint8_t>((1u << group.bits) - 1));
  }
  return codes;
}

absl::Status CheckKeyCodes(const uint8_t* cell, const CellFormat& format,
                           std::span<const CodeGroup> groups, uint32_t num_tokens) {
  const std::vector<uint8_t> ones = AllOnes(groups);
  return CheckUnused(
      "planes", cell, format.planes, format.num_tiles, size_t{format.key_words} * kLineBytes,
      num_tokens,
      [&](uint32_t present, uint8_t* used) { PackKeys(groups, ones.data(), present, used); });
}

absl::Status CheckValueCodes(const uint8_t* cell, const CellFormat& format,
                             std::span<const CodeGroup> groups, uint32_t num_tokens) {
  const std::vector<uint8_t> ones = AllOnes(groups);
  return CheckUnused(
      "value codes", cell, format.values, format.num_tiles, size_t{format.value_lines} * kLineBytes,
      num_tokens,
      [&](uint32_t present, uint8_t* used) { PackValues(groups, ones.data(), present, used); });
}

// Min-max: scales below infinity, and no zero that leads out of the floats.
absl::Status CheckRanges(const uint8_t* cell, const CellFormat& format) {
  const size_t lines = size_t{format.num_tiles} * format.value_groups;
  SKETCHKV_RETURN_IF_ERROR(
      CheckScales("value scale", cell, format.ranges, lines, kLanes, kLineBytes));
  for (size_t i = 0; i < lines * kLanes; ++i) {
    const size_t at = format.ranges + i / kLanes * kLineBytes + i % kLanes * 2;
    const auto zero = static_cast<int16_t>(ReadU16(cell + at + kLineBytes / 2));
    const float minimum = ScaleToFloat(ReadU16(cell + at)) * kZeroPointUnit * zero;
    if (zero >= -kLargestZero && std::isfinite(minimum)) continue;
    return Mismatch(absl::StrCat("value zero ", i), zero,
                    absl::StrCat("from ", -kLargestZero, " to ", kLargestZero,
                                 " and finite times its scale, ", ReadU16(cell + at)));
  }
  return absl::OkStatus();
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
  const size_t scale_rows = size_t{format_.num_tiles} * format_.scale_rows;
  SKETCHKV_RETURN_IF_ERROR(
      CheckScales("scale", bytes, format_.scales, scale_rows, kLanes, size_t{2} * kLanes));
  SKETCHKV_RETURN_IF_ERROR(CheckLanes("scales", bytes, format_.scales, format_.num_tiles,
                                      format_.scale_rows, 2, num_tokens));
  if (profile_.key_codec == KeyCodec::kRaw) {
    SKETCHKV_RETURN_IF_ERROR(CheckRows(kernels_, "keys", bytes, StoredKeyRows(bytes),
                                       layout_.head_dim, num_tokens, format_.values));
  } else {
    SKETCHKV_RETURN_IF_ERROR(CheckPlanes(bytes, format_, profile_, layout_.head_dim, num_tokens));
    SKETCHKV_RETURN_IF_ERROR(CheckKeyCodes(bytes, format_, key_groups_, num_tokens));
  }
  if (layout_.value_source == ValueSource::kKeyPrefix) return absl::OkStatus();
  if (profile_.value_codec == ValueCodec::kRaw) {
    return CheckRows(kernels_, "values", bytes, StoredValueRows(bytes), layout_.value_dim,
                     num_tokens, format_.cell_bytes);
  }
  SKETCHKV_RETURN_IF_ERROR(CheckValueCodes(bytes, format_, value_groups_, num_tokens));
  if (profile_.value_codec != ValueCodec::kMinMax) return absl::OkStatus();
  SKETCHKV_RETURN_IF_ERROR(CheckRanges(bytes, format_));
  return CheckLanes("value scales and zeros", bytes, format_.ranges, format_.num_tiles,
                    size_t{2} * format_.value_groups, 2, num_tokens);
}

}  // namespace sketchkv
