#include "kernels/format.h"

#include "kernels/base/checked_math.h"

namespace sketchkv {
namespace {

constexpr size_t kHalfBytes = 2;  // of a scale, a channel, a bf16 number

void PlaceScales(const CodecProfile& profile, CellFormat* format, size_t* at) {
  const bool key_scale = profile.key_codec != KeyCodec::kRaw;
  const bool value_scale =
      profile.value_codec == ValueCodec::kRotated || profile.value_codec == ValueCodec::kBasis;
  if (key_scale) format->key_scale_row = format->scale_rows++;
  if (profile.outlier_method == OutlierMethod::kSketch) {
    format->outlier_scale_row = format->scale_rows++;
  }
  const size_t row_bytes = size_t{format->num_tiles} * kTileTokens * kHalfBytes;
  format->key_bytes += format->scale_rows * row_bytes;
  if (value_scale) {
    format->value_scale_row = format->scale_rows++;
    format->value_bytes += row_bytes;
  }
  format->scales = *at;
  *at += format->scale_rows * row_bytes;
}

void PlaceKeys(const KvLayout& layout, const CodecProfile& profile, CellFormat* format,
               size_t* at) {
  if (profile.key_codec == KeyCodec::kRaw) {
    format->raw_keys = *at = RoundUp(*at, kLineBytes);
    *at += layout.block_tokens * layout.key_row_bytes();
    format->raw_keys_end = *at;
    format->key_bytes += *at - format->raw_keys;
    return;
  }
  format->mean = *at;
  if (profile.centering == Centering::kBlock) *at += layout.head_dim * kHalfBytes;
  format->key_bytes += *at - format->mean;

  *at = RoundUp(*at, kLineBytes);
  const size_t lines = *at;
  format->key_words = (profile.sign_bits + profile.key_row_bits) / kWordBits;
  format->outlier_words = profile.outlier_sign_bits / kWordBits;
  format->planes = *at;
  *at += size_t{format->num_tiles} * format->key_words * kLineBytes;
  format->outlier_planes = *at;
  *at += size_t{format->num_tiles} * format->outlier_words * kLineBytes;

  const bool residual = profile.outlier_method == OutlierMethod::kResidual;
  if (profile.num_outliers > 0 && profile.outlier_source == OutlierSource::kBlock) {
    format->outlier_groups = static_cast<uint32_t>(
        RoundUp(layout.block_tokens, profile.outlier_group_tokens) / profile.outlier_group_tokens);
  }
  const size_t outliers = profile.num_outliers;
  format->outlier_channels = *at;
  *at += format->outlier_groups * outliers * kHalfBytes;
  format->residual_scales = *at;
  *at += residual ? format->num_tiles * outliers * kHalfBytes : 0;
  format->residuals = *at;
  *at += residual ? format->num_tiles * outliers * kTileTokens : 0;
  format->outliers_end = *at;
  format->key_bytes += *at - lines;
}

void PlaceValues(const KvLayout& layout, const CodecProfile& profile, CellFormat* format,
                 size_t* at) {
  format->values = *at = RoundUp(*at, kLineBytes);
  if (profile.value_codec == ValueCodec::kRaw) {
    *at += layout.block_tokens * layout.value_row_bytes();
  } else {
    format->value_lines = profile.value_codec == ValueCodec::kBasis
                              ? profile.value_row_bits / kWordBits
                              : ValueLines(layout.value_dim, profile.value_bits);
    *at += size_t{format->num_tiles} * format->value_lines * kLineBytes;
  }
  format->values_end = *at;
  format->ranges = *at = RoundUp(*at, kLineBytes);
  if (profile.value_codec == ValueCodec::kMinMax) {
    format->value_groups = static_cast<uint32_t>(
        RoundUp(layout.value_dim, profile.value_group_size) / profile.value_group_size);
    *at += size_t{format->num_tiles} * format->value_groups * kLineBytes;
  }
  format->value_bytes += format->values_end - format->values + *at - format->ranges;
}

}  // namespace

CellFormat CellFormat::Make(const KvLayout& layout, const CodecProfile& profile) {
  CellFormat format;
  format.num_tiles = static_cast<uint32_t>(RoundUp(layout.block_tokens, kTileTokens) / kTileTokens);
  size_t at = 0;
  PlaceScales(profile, &format, &at);
  PlaceKeys(layout, profile, &format, &at);
  PlaceValues(layout, profile, &format, &at);
  format.cell_bytes = at;
  return format;
}

}  // namespace sketchkv
