#include <algorithm>
#include <cstring>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/cpu/cpu_codec.h"
#include "kernels/exact_math.h"

namespace sketchkv {
namespace {

absl::Status CheckOutputType(absl::string_view field, DType wanted, DType own, bool raw) {
  if (DTypeBytes(wanted) > 1 || (raw && wanted == own)) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(field, " is ", DTypeName(wanted), ", must be bf16, fp16 or fp32",
                   raw ? absl::StrCat(" or the stored ", DTypeName(own)) : std::string()));
}

// Raw rows of `source` as they are, or converted.
void DecodeRows(const KernelTable& kernels, const RowsArgs& source, uint32_t dim,
                uint32_t num_tokens, DType dtype, MutableRowsView out) {
  auto* bytes = reinterpret_cast<uint8_t*>(out.data);
  if (static_cast<uint32_t>(dtype) == source.dtype) {
    for (uint32_t token = 0; token < num_tokens; ++token) {
      std::memcpy(bytes + token * out.stride_bytes, source.data + token * source.stride,
                  dim * DTypeBytes(dtype));
    }
    return;
  }
  alignas(64) float tile[kMaxDim * kLanes];
  for (uint32_t token = 0; token < num_tokens; token += kLanes) {
    const uint32_t count = std::min(kLanes, num_tokens - token);
    RowsArgs rows = source;
    rows.data += token * source.stride;
    kernels.load_tile(rows, count, dim, tile);
    kernels.store_tile(tile, count, dim, bytes + token * out.stride_bytes, out.stride_bytes,
                       static_cast<uint32_t>(dtype));
  }
}

// decode(tile, [dim][16]) for each tile, to rows of `dtype`.
template <typename DecodeTile>
void StoreTiles(const KernelTable& kernels, uint32_t dim, uint32_t num_tokens, DType dtype,
                MutableRowsView out, const DecodeTile& decode) {
  alignas(64) float tile[kMaxDim * kLanes];
  for (uint32_t token = 0; token < num_tokens; token += kLanes) {
    decode(token / kLanes, tile);
    kernels.store_tile(tile, std::min(kLanes, num_tokens - token), dim,
                       reinterpret_cast<uint8_t*>(out.data) + token * out.stride_bytes,
                       out.stride_bytes, static_cast<uint32_t>(dtype));
  }
}

}  // namespace

absl::Status CpuCellCodec::Decode(std::span<const std::byte> cell, uint32_t num_tokens,
                                  DType key_dtype, MutableRowsView keys, DType value_dtype,
                                  MutableRowsView values) const {
  if (cell.size() != format_.cell_bytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("cell has ", cell.size(), " bytes, must have ", format_.cell_bytes));
  }
  if (num_tokens > layout_.block_tokens) {
    return absl::InvalidArgumentError(
        absl::StrCat("num_tokens is ", num_tokens, ", must be at most ", layout_.block_tokens));
  }
  const auto* bytes = reinterpret_cast<const uint8_t*>(cell.data());
  const bool raw_keys = profile_.key_codec == KeyCodec::kRaw;
  const bool raw_values = profile_.value_codec == ValueCodec::kRaw;
  if (keys.data != nullptr) {
    if (auto s = CheckOutputType("key dtype", key_dtype, layout_.key_dtype, raw_keys); !s.ok()) {
      return s;
    }
  }
  if (values.data != nullptr) {
    auto s = CheckOutputType("value dtype", value_dtype, layout_.value_dtype, raw_values);
    if (!s.ok()) return s;
  }
  if (keys.data != nullptr) {
    if (raw_keys) {
      DecodeRows(kernels_, StoredKeyRows(bytes), layout_.head_dim, num_tokens, key_dtype, keys);
    } else {
      DecodeKeys(bytes, num_tokens, key_dtype, keys);
    }
  }
  if (values.data == nullptr) return absl::OkStatus();
  if (raw_values) {
    DecodeRows(kernels_, StoredValueRows(bytes), layout_.value_dim, num_tokens, value_dtype,
               values);
  } else {
    DecodeValues(bytes, num_tokens, value_dtype, values);
  }
  return absl::OkStatus();
}

void CpuCellCodec::DecodeKeys(const uint8_t* cell, uint32_t num_tokens, DType dtype,
                              MutableRowsView out) const {
  StoreTiles(kernels_, layout_.head_dim, num_tokens, dtype, out,
             [&](uint32_t tile, float* keys) { DecodeKeyTile(cell, tile, keys); });
}

void CpuCellCodec::ReconstructKeys(const uint8_t* cell, uint32_t tile, float* keys) const {
  const uint8_t* planes = cell + format_.plane_offset(tile);
  if (profile_.key_codec == KeyCodec::kSketch) {
    return kernels_.reconstruct_signs(key_projection_->Args(), planes, keys);
  }
  alignas(64) float rows[kMaxDim * kLanes];
  kernels_.unpack_keys(key_groups_.data(), static_cast<uint32_t>(key_groups_.size()), planes, rows);
  kernels_.back_project(key_projection_->Args(), rows, keys);
}

void CpuCellCodec::DecodeKeyTile(const uint8_t* cell, uint32_t tile, float* keys) const {
  const uint32_t dim = layout_.head_dim;
  ReconstructKeys(cell, tile, keys);
  float scales[kLanes];
  kernels_.load_scales(cell + format_.scale_offset(tile, format_.key_scale_row), kLanes, scales);
  if (profile_.centering == Centering::kBlock) {
    float mean[kMaxDim];
    for (uint32_t c = 0; c < dim; ++c) {
      mean[c] = Bf16ToFloat(ReadU16(cell + format_.mean + size_t{2} * c));
    }
    kernels_.scale_tile(scales, mean, dim, keys);
  } else {
    kernels_.scale_tile(scales, key_mean(), dim, keys);
  }
  if (profile_.num_outliers > 0) AddOutliers(cell, tile, keys);
}

// Residuals are added to the sketch; a second sketch replaces it at its channels.
void CpuCellCodec::AddOutliers(const uint8_t* cell, uint32_t tile, float* keys) const {
  const uint32_t count = profile_.num_outliers;
  const uint8_t* channels = OutlierChannels(cell, tile * kLanes / profile_.outlier_group_tokens);
  if (profile_.outlier_method == OutlierMethod::kSketch) {
    std::vector<float> sketch(size_t{layout_.head_dim} * kLanes);
    kernels_.reconstruct_signs(key_projection_->Args(profile_.outlier_sign_bits),
                               cell + format_.outlier_plane_offset(tile), sketch.data());
    float scales[kLanes];
    kernels_.load_scales(cell + format_.scale_offset(tile, format_.outlier_scale_row), kLanes,
                         scales);
    for (uint32_t o = 0; o < count; ++o) {
      const size_t row = size_t{ReadU16(channels + 2 * o)} * kLanes;
      for (uint32_t i = 0; i < kLanes; ++i) keys[row + i] = sketch[row + i] * scales[i];
    }
    return;
  }
  const size_t first = size_t{tile} * count;
  for (uint32_t o = 0; o < count; ++o) {
    const float scale = ScaleToFloat(ReadU16(cell + format_.residual_scales + 2 * (first + o)));
    const uint8_t* residuals = cell + format_.residuals + (first + o) * kLanes;
    float* row = keys + size_t{ReadU16(channels + 2 * o)} * kLanes;
    for (uint32_t i = 0; i < kLanes; ++i) {
      row[i] += scale * static_cast<float>(static_cast<int8_t>(residuals[i]));
    }
  }
}

void CpuCellCodec::DecodeValueTile(const uint8_t* cell, uint32_t tile, float* values) const {
  const uint32_t dim = layout_.value_dim;
  const auto num_groups = static_cast<uint32_t>(value_groups_.size());
  const uint8_t* lines = cell + format_.value_offset(tile);
  if (profile_.value_codec != ValueCodec::kMinMax) {
    alignas(64) float rows[kMaxDim * kLanes];
    kernels_.unpack_values(value_groups_.data(), num_groups, lines, rows);
    kernels_.back_project(value_projection_->Args(), rows, values);
    float scales[kLanes];
    kernels_.load_scales(cell + format_.scale_offset(tile, format_.value_scale_row), kLanes,
                         scales);
    return kernels_.scale_tile(scales, value_mean(), dim, values);
  }
  kernels_.unpack_values(value_groups_.data(), num_groups, lines, values);
  kernels_.scale_ranges(cell + format_.ranges + size_t{tile} * format_.value_groups * kLineBytes,
                        profile_.value_group_size, dim, values);
}

void CpuCellCodec::DecodeValues(const uint8_t* cell, uint32_t num_tokens, DType dtype,
                                MutableRowsView out) const {
  StoreTiles(kernels_, layout_.value_dim, num_tokens, dtype, out,
             [&](uint32_t tile, float* values) { DecodeValueTile(cell, tile, values); });
}

}  // namespace sketchkv
