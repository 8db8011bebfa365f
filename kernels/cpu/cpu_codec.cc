#include "kernels/cpu/cpu_codec.h"

#include <cstring>
#include <limits>
#include <utility>

#include "kernels/base/checked_math.h"
#include "kernels/exact_math.h"

namespace sketchkv {
namespace {

static_assert(kLanes == kTileTokens);

// OCP 8-bit formats. E4M3 ("fn") has no infinity, and one NaN of each sign.
float Fp8ToFloat(DType dtype, uint32_t code) {
  const float sign = (code & 0x80) != 0 ? -1.0f : 1.0f;
  const uint32_t mantissa_bits = dtype == DType::kFp8E4M3 ? 3 : 2;
  const int bias = dtype == DType::kFp8E4M3 ? 7 : 15;
  const uint32_t exponent = (code & 0x7F) >> mantissa_bits;
  const uint32_t mantissa = code & ((1u << mantissa_bits) - 1);
  if (dtype == DType::kFp8E4M3 && (code & 0x7F) == 0x7F) {
    return std::numeric_limits<float>::quiet_NaN();
  }
  if (dtype == DType::kFp8E5M2 && exponent == 31) {
    return mantissa == 0 ? sign * std::numeric_limits<float>::infinity()
                         : std::numeric_limits<float>::quiet_NaN();
  }
  const uint32_t implicit = exponent == 0 ? 0 : 1u << mantissa_bits;
  const int power =
      (exponent == 0 ? 1 : static_cast<int>(exponent)) - bias - static_cast<int>(mantissa_bits);
  return sign * static_cast<float>(implicit + mantissa) * PowerOfTwo(power);
}

std::vector<float> Fp8Values(DType dtype, float scale) {
  if (DTypeBytes(dtype) != 1) return {};
  std::vector<float> values(256);
  for (uint32_t code = 0; code < 256; ++code) values[code] = Fp8ToFloat(dtype, code) * scale;
  return values;
}

// S transposed, by projecting unit vectors: the same numbers the kernels multiply by.
std::vector<float> Columns(const ProjectionMatrix& projection, uint32_t rows,
                           const KernelTable& kernels) {
  const uint32_t dim = projection.dim();
  std::vector<float> columns(size_t{dim} * rows);
  std::vector<float> tile(size_t{dim} * kLanes);
  std::vector<float> projected(RoundUp(rows, dim) * kLanes);
  for (uint32_t first = 0; first < dim; first += kLanes) {
    std::fill(tile.begin(), tile.end(), 0.0f);
    for (uint32_t i = 0; i < kLanes && first + i < dim; ++i) {
      tile[size_t{first + i} * kLanes + i] = 1.0f;
    }
    kernels.project_tile(projection.Args(), tile.data(), projected.data());
    for (uint32_t i = 0; i < kLanes && first + i < dim; ++i) {
      float* column = columns.data() + size_t{first + i} * rows;
      for (uint32_t row = 0; row < rows; ++row) column[row] = projected[size_t{row} * kLanes + i];
    }
  }
  return columns;
}

const uint8_t* Bytes(const std::byte* p) { return reinterpret_cast<const uint8_t*>(p); }

}  // namespace

Pow2Factors MakePow2(int exponent) {
  const int third = exponent / 3;
  return {{PowerOfTwo(third), PowerOfTwo(third), PowerOfTwo(exponent - 2 * third)}};
}

CellHeader ReadHeader(const uint8_t* cell) {
  CellHeader header;
  std::memcpy(&header, cell, sizeof(header));
  return header;
}

uint16_t ReadU16(const uint8_t* p) {
  uint16_t value = 0;
  std::memcpy(&value, p, sizeof(value));
  return value;
}

void WriteU16(uint8_t* p, uint16_t value) { std::memcpy(p, &value, sizeof(value)); }

CpuCellCodec::CpuCellCodec(const KvLayout& layout, CodecProfile profile, const KernelTable& kernels)
    : layout_(layout),
      profile_(std::move(profile)),
      format_(CellFormat::Make(layout_, profile_)),
      kernels_(kernels),
      key_fp8_(Fp8Values(layout_.key_dtype, layout_.key_scale)),
      value_fp8_(Fp8Values(layout_.value_dtype, layout_.value_scale)) {
  if (profile_.key_codec == KeyCodec::kRaw) return;
  projection_ = std::make_unique<const ProjectionMatrix>(profile_.projection, layout_.head_dim,
                                                         profile_.sign_bits, profile_.seed);
  if (profile_.outlier_method == OutlierMethod::kSketch) {
    columns_ = Columns(*projection_, profile_.sign_bits, kernels_);
  }
}

std::span<const float> CpuCellCodec::dense_projection() const {
  return projection_ == nullptr ? std::span<const float>() : projection_->dense();
}

RowsArgs CpuCellCodec::KeyRows(RowsView view) const {
  return {Bytes(view.data), view.stride_bytes, static_cast<uint32_t>(layout_.key_dtype),
          key_fp8_.data()};
}

RowsArgs CpuCellCodec::ValueRows(RowsView view) const {
  return {Bytes(view.data), view.stride_bytes, static_cast<uint32_t>(layout_.value_dtype),
          value_fp8_.data()};
}

RowsArgs CpuCellCodec::StoredKeyRows(const uint8_t* cell) const {
  return {cell + format_.raw_keys, layout_.key_row_bytes(),
          static_cast<uint32_t>(layout_.key_dtype), key_fp8_.data()};
}

RowsArgs CpuCellCodec::StoredValueRows(const uint8_t* cell) const {
  if (layout_.value_source == ValueSource::kKeyPrefix) return StoredKeyRows(cell);
  return {cell + format_.values, layout_.value_row_bytes(),
          static_cast<uint32_t>(layout_.value_dtype), value_fp8_.data()};
}

ValueCodesArgs CpuCellCodec::ValueCodes(const uint8_t* cell, int scale_exponent,
                                        int minimum_exponent) const {
  return {layout_.value_dim,          profile_.value_group_size, format_.value_groups,
          profile_.value_bits,        format_.value_row_bytes,   cell + format_.values,
          cell + format_.value_lines, MakePow2(scale_exponent),  MakePow2(minimum_exponent)};
}

}  // namespace sketchkv
