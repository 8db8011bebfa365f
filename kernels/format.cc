#include "kernels/format.h"

#include "kernels/base/checked_math.h"

namespace sketchkv {
namespace {

constexpr size_t kHalfBytes = 2;

void PlaceSketch(const KvLayout& layout, const CodecProfile& profile, CellFormat* format) {
  const size_t scale_bytes = format->num_tiles * kTileTokens * kHalfBytes;
  const bool residual = profile.outlier_method == OutlierMethod::kResidual;
  const bool second_sketch = profile.outlier_method == OutlierMethod::kSketch;
  const uint32_t outliers = profile.num_outliers;
  if (residual) format->outlier_groups = 1;
  if (second_sketch) {
    format->outlier_groups = static_cast<uint32_t>(
        RoundUp(layout.block_tokens, profile.outlier_group_tokens) / profile.outlier_group_tokens);
  }
  format->sign_words = profile.sign_bits / kSignWordBits;
  format->outlier_words = profile.outlier_sign_bits / kSignWordBits;

  size_t at = sizeof(CellHeader);
  format->outlier_channels = at;
  at += format->outlier_groups * outliers * kHalfBytes;
  format->residual_scales = at;
  at += residual ? outliers * kHalfBytes : 0;
  format->key_scales = at;
  at += scale_bytes;
  format->outlier_scales = at;
  at += second_sketch ? scale_bytes : 0;
  format->key_bytes = at - sizeof(CellHeader);

  at = RoundUp(at, kLineBytes);
  const size_t lines = at;
  format->signs = at;
  at += format->num_tiles * format->sign_tile_bytes();
  format->outlier_signs = at;
  at += format->num_tiles * format->outlier_tile_bytes();
  format->residuals = at;
  at += residual ? format->num_tiles * kTileTokens * outliers : 0;
  format->key_bytes += at - lines;
  format->keys_end = at;
}

void PlaceRawKeys(const KvLayout& layout, CellFormat* format) {
  format->raw_keys = kLineBytes;
  format->key_bytes = layout.block_tokens * layout.key_row_bytes();
  format->keys_end = format->raw_keys + format->key_bytes;
}

void PlaceValues(const KvLayout& layout, const CodecProfile& profile, CellFormat* format) {
  const bool raw = profile.value_codec == ValueCodec::kRaw;
  format->value_row_bytes =
      raw ? layout.value_row_bytes() : layout.value_dim * profile.value_bits / 8;
  format->values = RoundUp(format->keys_end, kLineBytes);
  format->value_bytes = layout.block_tokens * format->value_row_bytes;
  format->values_end = format->values + format->value_bytes;
  format->value_lines = RoundUp(format->values_end, kLineBytes);
  if (!raw) {
    format->value_groups = static_cast<uint32_t>(
        RoundUp(layout.value_dim, profile.value_group_size) / profile.value_group_size);
  }
  const size_t line_bytes = format->num_tiles * format->value_groups * kLineBytes;
  format->value_bytes += line_bytes;
  format->cell_bytes = format->value_lines + line_bytes;
}

}  // namespace

uint8_t CodecsByte(const CodecProfile& profile) {
  return static_cast<uint8_t>(static_cast<uint32_t>(profile.key_codec) |
                              static_cast<uint32_t>(profile.outlier_method) << 2 |
                              static_cast<uint32_t>(profile.value_codec) << 4);
}

CellFormat CellFormat::Make(const KvLayout& layout, const CodecProfile& profile) {
  CellFormat format;
  format.num_tiles = static_cast<uint32_t>(RoundUp(layout.block_tokens, kTileTokens) / kTileTokens);
  if (profile.key_codec == KeyCodec::kSketch) {
    PlaceSketch(layout, profile, &format);
  } else {
    PlaceRawKeys(layout, &format);
  }
  PlaceValues(layout, profile, &format);
  return format;
}

}  // namespace sketchkv
