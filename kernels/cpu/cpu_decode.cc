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
  std::vector<float> tile(size_t{dim} * kLanes);
  for (uint32_t token = 0; token < num_tokens; token += kLanes) {
    const uint32_t count = std::min(kLanes, num_tokens - token);
    RowsArgs rows = source;
    rows.data += token * source.stride;
    kernels.load_tile(rows, count, dim, tile.data());
    kernels.store_tile(tile.data(), count, dim, bytes + token * out.stride_bytes, out.stride_bytes,
                       static_cast<uint32_t>(dtype));
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
  const CellHeader header = ReadHeader(cell);
  std::vector<float> tile(size_t{layout_.head_dim} * kLanes);
  for (uint32_t token = 0; token < num_tokens; token += kLanes) {
    DecodeKeyTile(cell, header, token / kLanes, tile.data());
    kernels_.store_tile(tile.data(), std::min(kLanes, num_tokens - token), layout_.head_dim,
                        reinterpret_cast<uint8_t*>(out.data) + token * out.stride_bytes,
                        out.stride_bytes, static_cast<uint32_t>(dtype));
  }
}

void CpuCellCodec::DecodeKeyTile(const uint8_t* cell, const CellHeader& header, uint32_t tile,
                                 float* keys) const {
  const uint8_t* scales = cell + format_.key_scales + size_t{2} * tile * kLanes;
  kernels_.reconstruct_tile(projection_->Args(),
                            cell + format_.signs + tile * format_.sign_tile_bytes(), scales, keys);
  kernels_.multiply(keys, size_t{layout_.head_dim} * kLanes, MakePow2(header.key_exponent));
  if (profile_.num_outliers > 0) AddOutliers(cell, header, tile, keys);
}

// Residuals are added to the sketch; a second sketch replaces it at its channels.
void CpuCellCodec::AddOutliers(const uint8_t* cell, const CellHeader& header, uint32_t tile,
                               float* keys) const {
  const uint32_t count = profile_.num_outliers;
  const bool second_sketch = profile_.outlier_method == OutlierMethod::kSketch;
  const uint32_t group = second_sketch ? tile * kLanes / profile_.outlier_group_tokens : 0;
  const uint8_t* channels = cell + format_.outlier_channels + size_t{2} * group * count;
  const Pow2Factors factors = MakePow2(header.outlier_exponent);
  if (second_sketch) {
    std::vector<float> sketch(size_t{layout_.head_dim} * kLanes);
    kernels_.reconstruct_tile(projection_->Args(profile_.outlier_sign_bits),
                              cell + format_.outlier_signs + tile * format_.outlier_tile_bytes(),
                              cell + format_.outlier_scales + size_t{2} * tile * kLanes,
                              sketch.data());
    kernels_.multiply(sketch.data(), sketch.size(), factors);
    for (uint32_t o = 0; o < count; ++o) {
      const size_t row = size_t{ReadU16(channels + 2 * o)} * kLanes;
      std::copy_n(sketch.data() + row, kLanes, keys + row);
    }
    return;
  }
  uint8_t halves[2 * kLanes] = {};
  std::memcpy(halves, cell + format_.residual_scales, size_t{2} * count);
  float scales[kLanes];
  kernels_.from_half(halves, kLanes, scales);
  kernels_.multiply(scales, kLanes, factors);
  const uint8_t* residuals = cell + format_.residuals + size_t{tile} * count * kLanes;
  for (uint32_t o = 0; o < count; ++o) {
    float* row = keys + size_t{ReadU16(channels + 2 * o)} * kLanes;
    for (uint32_t i = 0; i < kLanes; ++i) {
      row[i] += scales[o] * static_cast<float>(static_cast<int8_t>(residuals[o * kLanes + i]));
    }
  }
}

// In units of the larger of the two powers of two, so that code * scale cannot overflow where
// scale * code + minimum does not.
void CpuCellCodec::DecodeValues(const uint8_t* cell, uint32_t num_tokens, DType dtype,
                                MutableRowsView out) const {
  const CellHeader header = ReadHeader(cell);
  const int unit = std::max(header.value_exponent, header.minimum_exponent);
  kernels_.decode_values(
      {ValueCodes(cell, header.value_exponent - unit, header.minimum_exponent - unit), num_tokens,
       MakePow2(unit), reinterpret_cast<uint8_t*>(out.data), out.stride_bytes,
       static_cast<uint32_t>(dtype)});
}

}  // namespace sketchkv
