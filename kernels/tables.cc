#include "kernels/tables.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstring>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "kernels/base/status_macros.h"
#include "kernels/format.h"

namespace sketchkv {
namespace {

constexpr double kOrthonormalTolerance = 1e-3;
constexpr uint32_t kMaxTableOutliers = 16;
// Of a basis, the least RMS of a group to the largest; and the largest number of a mean, so that a
// finite key less it is finite.
constexpr float kLeastRmsRatio = 0x1p-40f;
constexpr float kLargestMean = 0x1p100f;

static_assert(kBasisGroupRows == kGroupRows);

uint32_t RowsOf(const Basis& basis, uint32_t dim) {
  return static_cast<uint32_t>(basis.rows.size() / dim);
}

// Rows of group `g`: 32, or what is left in the last one.
uint32_t GroupRows(const Basis& basis, uint32_t dim, size_t g) {
  return std::min(kGroupRows, RowsOf(basis, dim) - static_cast<uint32_t>(g) * kGroupRows);
}

absl::Status CheckFinite(absl::string_view field, const std::vector<float>& numbers) {
  for (size_t i = 0; i < numbers.size(); ++i) {
    if (std::isfinite(numbers[i])) continue;
    return absl::InvalidArgumentError(
        absl::StrFormat("%s[%u] is %g, must be finite", std::string(field), i, numbers[i]));
  }
  return absl::OkStatus();
}

absl::Status CheckMean(absl::string_view field, const std::vector<float>& mean, uint32_t dim) {
  if (!mean.empty() && mean.size() != dim) {
    return absl::InvalidArgumentError(
        absl::StrCat(field, " has ", mean.size(), " numbers, must have 0 or ", dim));
  }
  for (size_t c = 0; c < mean.size(); ++c) {
    if (std::fabs(mean[c]) <= kLargestMean) continue;  // false for NaN
    return absl::InvalidArgumentError(absl::StrFormat("%s[%u] is %g, must be from -2^100 to 2^100",
                                                      std::string(field), c, mean[c]));
  }
  return absl::OkStatus();
}

absl::Status CheckOrthonormal(absl::string_view field, const Basis& basis, uint32_t dim) {
  const uint32_t rows = RowsOf(basis, dim);
  for (uint32_t i = 0; i < rows; ++i) {
    for (uint32_t j = 0; j <= i; ++j) {
      double dot = 0;
      for (uint32_t c = 0; c < dim; ++c) {
        dot += double{basis.rows[size_t{i} * dim + c]} * basis.rows[size_t{j} * dim + c];
      }
      const double wanted = i == j ? 1.0 : 0.0;
      if (std::fabs(dot - wanted) <= kOrthonormalTolerance) continue;
      return absl::InvalidArgumentError(
          absl::StrFormat("%s: the product of rows %u and %u is %g, must be %g to within %g",
                          std::string(field), i, j, dot, wanted, kOrthonormalTolerance));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckBasis(absl::string_view field, const Basis& basis, uint32_t dim) {
  if (basis.empty()) {
    if (basis.group_bits.empty() && basis.group_rms.empty()) return absl::OkStatus();
    return absl::InvalidArgumentError(absl::StrCat(field, " has 0 rows, but ",
                                                   basis.group_bits.size(), " group_bits and ",
                                                   basis.group_rms.size(), " group_rms"));
  }
  const size_t rows = basis.rows.size() / dim;
  if (basis.rows.size() % dim != 0 || rows > dim) {
    return absl::InvalidArgumentError(absl::StrCat(
        field, " has ", basis.rows.size(), " numbers, must have 1-", dim, " rows of ", dim));
  }
  const size_t groups = (rows + kGroupRows - 1) / kGroupRows;
  if (basis.group_bits.size() != groups || basis.group_rms.size() != groups) {
    return absl::InvalidArgumentError(absl::StrCat(
        field, " has ", basis.group_bits.size(), " group_bits and ", basis.group_rms.size(),
        " group_rms, must have ", groups, " for ", rows, " rows"));
  }
  for (size_t g = 0; g < groups; ++g) {
    const uint32_t bits = basis.group_bits[g];
    const uint32_t most = g == 0 ? 4 : basis.group_bits[g - 1];
    if (bits < 1 || bits > most) {
      return absl::InvalidArgumentError(
          absl::StrCat(field, ".group_bits[", g, "] is ", bits, ", must be 1-", most));
    }
    if (std::isfinite(basis.group_rms[g]) && basis.group_rms[g] >= FLT_MIN) continue;
    return absl::InvalidArgumentError(
        absl::StrFormat("%s.group_rms[%u] is %g, must be finite and at least %g",
                        std::string(field), g, basis.group_rms[g], FLT_MIN));
  }
  const float largest = *std::max_element(basis.group_rms.begin(), basis.group_rms.end());
  for (size_t g = 0; g < groups; ++g) {
    if (basis.group_rms[g] >= largest * kLeastRmsRatio) continue;
    return absl::InvalidArgumentError(
        absl::StrFormat("%s.group_rms[%u] is %g, must be at least 2^-40 of the largest, %g",
                        std::string(field), g, basis.group_rms[g], largest));
  }
  SKETCHKV_RETURN_IF_ERROR(CheckFinite(field, basis.rows));
  return CheckOrthonormal(field, basis, dim);
}

absl::Status CheckChannels(const std::vector<uint32_t>& channels, uint32_t dim) {
  if (channels.size() > kMaxTableOutliers) {
    return absl::InvalidArgumentError(absl::StrCat("outlier_channels has ", channels.size(),
                                                   " entries, must have 0-", kMaxTableOutliers));
  }
  for (size_t i = 0; i < channels.size(); ++i) {
    if (channels[i] < dim && (i == 0 || channels[i] > channels[i - 1])) continue;
    return absl::InvalidArgumentError(absl::StrCat("outlier_channels[", i, "] is ", channels[i],
                                                   ", must be ascending and below ", dim));
  }
  return absl::OkStatus();
}

absl::Status CheckHead(const HeadTable& head, const KvLayout& layout) {
  SKETCHKV_RETURN_IF_ERROR(CheckMean("key_mean", head.key_mean, layout.head_dim));
  SKETCHKV_RETURN_IF_ERROR(CheckChannels(head.outlier_channels, layout.head_dim));
  SKETCHKV_RETURN_IF_ERROR(CheckBasis("key_basis", head.key_basis, layout.head_dim));
  SKETCHKV_RETURN_IF_ERROR(CheckMean("value_mean", head.value_mean, layout.value_dim));
  return CheckBasis("value_basis", head.value_basis, layout.value_dim);
}

// The size in bytes, then the bytes.
void Append(const void* data, size_t bytes, std::vector<uint8_t>* out) {
  const uint64_t size = bytes;
  const size_t at = out->size();
  out->resize(at + sizeof(size) + bytes);
  std::memcpy(out->data() + at, &size, sizeof(size));
  if (bytes > 0) std::memcpy(out->data() + at + sizeof(size), data, bytes);
}

template <typename T>
void Append(const std::vector<T>& numbers, std::vector<uint8_t>* out) {
  Append(numbers.data(), numbers.size() * sizeof(T), out);
}

void Append(const Basis& basis, std::vector<uint8_t>* out) {
  Append(basis.rows, out);
  Append(basis.group_bits, out);
  Append(basis.group_rms, out);
}

uint64_t BytesOf(const Basis& basis) {
  return basis.rows.size() * sizeof(float) + basis.group_bits.size() +
         basis.group_rms.size() * sizeof(float);
}

}  // namespace

uint32_t KeyRowBits(const Basis& basis, uint32_t dim) {
  uint32_t words = 0;
  for (size_t g = 0; g < basis.group_bits.size(); ++g) {
    words += KeyWords(GroupRows(basis, dim, g), basis.group_bits[g]);
  }
  return words * kWordBits;
}

uint32_t ValueRowBits(const Basis& basis, uint32_t dim) {
  uint32_t lines = 0;
  for (size_t g = 0; g < basis.group_bits.size(); ++g) {
    lines += ValueLines(GroupRows(basis, dim, g), basis.group_bits[g]);
  }
  return lines * kWordBits;  // a line is 512 bits of 16 tokens
}

absl::StatusOr<ModelTables> ModelTables::Create(const KvLayout& layout,
                                                std::vector<HeadTable> heads) {
  SKETCHKV_RETURN_IF_ERROR(layout.Validate());
  const size_t wanted = size_t{layout.num_layers} * layout.num_kv_heads;
  if (heads.size() != wanted) {
    return absl::InvalidArgumentError(
        absl::StrCat("tables are given for ", heads.size(), " heads, must be for ", wanted, " (",
                     layout.num_layers, " layers of ", layout.num_kv_heads, ")"));
  }
  for (size_t i = 0; i < heads.size(); ++i) {
    if (absl::Status status = CheckHead(heads[i], layout); !status.ok()) {
      return absl::InvalidArgumentError(absl::StrCat("tables of layer ", i / layout.num_kv_heads,
                                                     " head ", i % layout.num_kv_heads, ": ",
                                                     status.message()));
    }
  }
  ModelTables tables;
  tables.num_layers_ = layout.num_layers;
  tables.num_kv_heads_ = layout.num_kv_heads;
  tables.head_dim_ = layout.head_dim;
  tables.value_dim_ = layout.value_dim;
  tables.heads_ = std::move(heads);
  return tables;
}

uint64_t ModelTables::size_bytes() const {
  uint64_t bytes = 0;
  for (const HeadTable& head : heads_) {
    bytes += sizeof(HeadTable) + (head.key_mean.size() + head.value_mean.size()) * sizeof(float) +
             head.outlier_channels.size() * sizeof(uint32_t) + BytesOf(head.key_basis) +
             BytesOf(head.value_basis);
  }
  return bytes;
}

std::vector<uint8_t> ModelTables::Serialize() const {
  std::vector<uint8_t> out;
  out.reserve(size_bytes() + (1 + 9 * heads_.size()) * (sizeof(uint64_t) + 16));
  const uint32_t shape[4] = {num_layers_, num_kv_heads_, head_dim_, value_dim_};
  Append(shape, sizeof(shape), &out);
  for (const HeadTable& head : heads_) {
    Append(head.key_mean, &out);
    Append(head.outlier_channels, &out);
    Append(head.key_basis, &out);
    Append(head.value_mean, &out);
    Append(head.value_basis, &out);
  }
  return out;
}

absl::Status ModelTables::CheckShape(const KvLayout& layout) const {
  const struct {
    absl::string_view field;
    uint32_t have, wanted;
  } fields[] = {{"num_layers", num_layers_, layout.num_layers},
                {"num_kv_heads", num_kv_heads_, layout.num_kv_heads},
                {"head_dim", head_dim_, layout.head_dim},
                {"value_dim", value_dim_, layout.value_dim}};
  for (const auto& [field, have, wanted] : fields) {
    if (have == wanted) continue;
    return absl::InvalidArgumentError(
        absl::StrCat("tables are for ", field, " ", have, ", the layout has ", wanted));
  }
  return absl::OkStatus();
}

absl::Status ModelTables::CheckServes(const CodecProfile& profile, const KvLayout& layout,
                                      uint32_t layer) const {
  SKETCHKV_RETURN_IF_ERROR(CheckShape(layout));
  for (uint32_t h = 0; h < num_kv_heads_; ++h) {
    const HeadTable& head = at(layer, h);
    const auto need = [&](absl::string_view field, uint64_t have, uint64_t wanted) {
      if (have == wanted) return absl::OkStatus();
      return absl::InvalidArgumentError(absl::StrCat("tables of layer ", layer, " head ", h, ": ",
                                                     field, " is ", have, ", profile '",
                                                     profile.name, "' needs ", wanted));
    };
    // Parts have the right size or are not there.
    const auto has = [](const Basis& basis) { return basis.empty() ? 0 : 1; };
    if (profile.centering == Centering::kTable) {
      SKETCHKV_RETURN_IF_ERROR(need("the number of key means", head.key_mean.empty() ? 0 : 1, 1));
    }
    if (profile.outlier_source == OutlierSource::kTable) {
      SKETCHKV_RETURN_IF_ERROR(need("the number of outlier_channels", head.outlier_channels.size(),
                                    profile.num_outliers));
    }
    if (profile.projection == Projection::kBasis) {
      SKETCHKV_RETURN_IF_ERROR(need("the number of key bases", has(head.key_basis), 1));
      SKETCHKV_RETURN_IF_ERROR(
          need("key_row_bits", KeyRowBits(head.key_basis, head_dim_), profile.key_row_bits));
    }
    if (profile.value_codec == ValueCodec::kBasis) {
      SKETCHKV_RETURN_IF_ERROR(need("the number of value bases", has(head.value_basis), 1));
      SKETCHKV_RETURN_IF_ERROR(need("value_row_bits", ValueRowBits(head.value_basis, value_dim_),
                                    profile.value_row_bits));
    }
  }
  return absl::OkStatus();
}

}  // namespace sketchkv
