#include "kernels/cpu/cpu_codec.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>
#include <utility>

#include "kernels/base/checked_math.h"
#include "kernels/exact_math.h"

namespace sketchkv {
namespace {

static_assert(kLanes == kTileTokens);

// Keys and values are rotated by different signs.
constexpr uint64_t kValueSeed = 0x76616C7565;

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

const uint8_t* Bytes(const std::byte* p) { return reinterpret_cast<const uint8_t*>(p); }

// At most.
bool AllOfTwoBits(const std::vector<CodeGroup>& groups) {
  return std::all_of(groups.begin(), groups.end(), [](const CodeGroup& g) { return g.bits <= 2; });
}

}  // namespace

std::vector<float> Fp8Values(DType dtype, float scale) {
  if (DTypeBytes(dtype) != 1) return {};
  std::vector<float> values(256);
  for (uint32_t code = 0; code < 256; ++code) values[code] = Fp8ToFloat(dtype, code) * scale;
  return values;
}

std::vector<float> ProjectionColumns(const ProjectionMatrix& projection, uint32_t rows,
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

Pow2Factors MakePow2(int exponent) {
  const int third = exponent / 3;
  return {{PowerOfTwo(third), PowerOfTwo(third), PowerOfTwo(exponent - 2 * third)}};
}

uint16_t ReadU16(const uint8_t* p) {
  uint16_t value = 0;
  std::memcpy(&value, p, sizeof(value));
  return value;
}

void WriteU16(uint8_t* p, uint16_t value) { std::memcpy(p, &value, sizeof(value)); }

float ScaleToFloat(uint16_t scale) { return std::bit_cast<float>(uint32_t{scale} << 15); }

float Bf16ToFloat(uint16_t bits) { return std::bit_cast<float>(uint32_t{bits} << 16); }

uint16_t FloatToBf16(float x) {
  constexpr float kLargest = 0x1.FEp127f;
  const auto bits = std::bit_cast<uint32_t>(std::clamp(x, -kLargest, kLargest));
  return static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

SharedProjections MakeProjections(const KvLayout& layout, const CodecProfile& profile) {
  SharedProjections shared;
  if (profile.key_codec != KeyCodec::kRaw && profile.projection != Projection::kBasis) {
    const uint32_t rows =
        profile.key_codec == KeyCodec::kSketch ? profile.sign_bits : layout.head_dim;
    shared.keys = std::make_shared<const ProjectionMatrix>(profile.projection, layout.head_dim,
                                                           rows, profile.seed);
  }
  if (profile.value_codec == ValueCodec::kRotated) {
    shared.values = std::make_shared<const ProjectionMatrix>(
        Projection::kHadamard, layout.value_dim, layout.value_dim, profile.seed ^ kValueSeed);
  }
  return shared;
}

CpuCellCodec::CpuCellCodec(const KvLayout& layout, CodecProfile profile,
                           SharedProjections projections, const HeadTable* table,
                           const KernelTable& kernels)
    : layout_(layout),
      profile_(std::move(profile)),
      format_(CellFormat::Make(layout_, profile_)),
      kernels_(kernels),
      table_(table),
      key_projection_(std::move(projections.keys)),
      value_projection_(std::move(projections.values)),
      key_groups_(KeyGroups(profile_, layout_, table)),
      outlier_groups_(SecondSketchGroups(profile_)),
      value_groups_(ValueGroups(profile_, layout_, table)),
      value_digits_(AllOfTwoBits(value_groups_) ? 1 : 2),
      key_unit_energy_(UnitEnergy(key_groups_)),
      value_unit_energy_(UnitEnergy(value_groups_)),
      key_fp8_(Fp8Values(layout_.key_dtype, layout_.key_scale)),
      value_fp8_(Fp8Values(layout_.value_dtype, layout_.value_scale)) {
  if (profile_.projection == Projection::kBasis) {
    key_projection_ =
        std::make_shared<const ProjectionMatrix>(layout_.head_dim, table_->key_basis.rows);
  }
  if (profile_.value_codec == ValueCodec::kBasis) {
    value_projection_ =
        std::make_shared<const ProjectionMatrix>(layout_.value_dim, table_->value_basis.rows);
  }
  if (profile_.outlier_method == OutlierMethod::kSketch) {
    columns_ = ProjectionColumns(*key_projection_, profile_.sign_bits, kernels_);
  }
  if (profile_.outlier_source == OutlierSource::kTable) {
    for (const uint32_t channel : table_->outlier_channels) {
      table_channels_.push_back(static_cast<uint8_t>(channel));
      table_channels_.push_back(static_cast<uint8_t>(channel >> 8));
    }
  }
}

std::span<const float> CpuCellCodec::dense_projection() const {
  if (key_projection_ == nullptr || profile_.projection == Projection::kBasis) return {};
  return key_projection_->dense();
}

const float* CpuCellCodec::key_mean() const {
  return profile_.centering == Centering::kTable ? table_->key_mean.data() : nullptr;
}

const float* CpuCellCodec::value_mean() const {
  const bool centered = profile_.value_codec == ValueCodec::kBasis && !table_->value_mean.empty();
  return centered ? table_->value_mean.data() : nullptr;
}

uint32_t CpuCellCodec::value_rows() const {
  return value_projection_ == nullptr ? layout_.value_dim : value_projection_->rows();
}

const uint8_t* CpuCellCodec::OutlierChannels(const uint8_t* cell, uint32_t group) const {
  if (profile_.outlier_source == OutlierSource::kTable) return table_channels_.data();
  return cell + format_.outlier_channels + size_t{2} * group * profile_.num_outliers;
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

}  // namespace sketchkv
