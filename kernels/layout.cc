#include "kernels/layout.h"

#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "kernels/base/status_macros.h"

namespace sketchkv {
namespace {

absl::Status CheckRange(absl::string_view field, uint32_t value, uint32_t low, uint32_t high,
                        uint32_t step = 1) {
  if (value >= low && value <= high && value % step == 0) return absl::OkStatus();
  std::string bound = absl::StrCat(low, "-", high);
  if (step > 1) absl::StrAppend(&bound, " in steps of ", step);
  return absl::InvalidArgumentError(absl::StrCat(field, " is ", value, ", must be ", bound));
}

absl::Status CheckDType(absl::string_view field, DType dtype) {
  const auto code = static_cast<uint32_t>(dtype);
  return CheckRange(field, code, static_cast<uint32_t>(DType::kBf16),
                    static_cast<uint32_t>(DType::kFp8E5M2));
}

absl::Status CheckScale(absl::string_view field, DType dtype, float scale) {
  const bool is_fp8 = dtype == DType::kFp8E4M3 || dtype == DType::kFp8E5M2;
  if (!is_fp8 && scale != 1.0f) {
    return absl::InvalidArgumentError(absl::StrFormat("%s is %g, must be 1 for dtype %s", field,
                                                      scale, std::string(DTypeName(dtype))));
  }
  if (!std::isfinite(scale) || scale <= 0.0f) {
    return absl::InvalidArgumentError(
        absl::StrFormat("%s is %g, must be finite and above 0", field, scale));
  }
  return absl::OkStatus();
}

absl::Status CheckKeyPrefix(const KvLayout& layout) {
  if (layout.value_dim > layout.head_dim) {
    return absl::InvalidArgumentError(absl::StrCat("value_dim is ", layout.value_dim,
                                                   ", must be at most head_dim (", layout.head_dim,
                                                   ") when values are a prefix of the keys"));
  }
  if (layout.value_dtype != layout.key_dtype || layout.value_scale != layout.key_scale) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "value_dtype is %s with scale %g, must equal key_dtype %s with scale %g when values are a "
        "prefix of the keys",
        std::string(DTypeName(layout.value_dtype)), layout.value_scale,
        std::string(DTypeName(layout.key_dtype)), layout.key_scale));
  }
  return absl::OkStatus();
}

}  // namespace

size_t DTypeBytes(DType dtype) {
  switch (dtype) {
    case DType::kBf16:
    case DType::kFp16:
      return 2;
    case DType::kFp32:
      return 4;
    case DType::kFp8E4M3:
    case DType::kFp8E5M2:
      return 1;
  }
  return 0;
}

absl::string_view DTypeName(DType dtype) {
  switch (dtype) {
    case DType::kBf16:
      return "bf16";
    case DType::kFp16:
      return "fp16";
    case DType::kFp32:
      return "fp32";
    case DType::kFp8E4M3:
      return "fp8_e4m3";
    case DType::kFp8E5M2:
      return "fp8_e5m2";
  }
  return "unknown";
}

absl::StatusOr<DType> ParseDType(absl::string_view name) {
  for (DType dtype : {DType::kBf16, DType::kFp16, DType::kFp32, DType::kFp8E4M3, DType::kFp8E5M2}) {
    if (DTypeName(dtype) == name) return dtype;
  }
  return absl::InvalidArgumentError(
      absl::StrCat("dtype is '", name, "', must be one of bf16, fp16, fp32, fp8_e4m3, fp8_e5m2"));
}

absl::Status KvLayout::Validate() const {
  SKETCHKV_RETURN_IF_ERROR(CheckRange("num_layers", num_layers, 1, 256));
  SKETCHKV_RETURN_IF_ERROR(CheckRange("num_kv_heads", num_kv_heads, 1, 256));
  SKETCHKV_RETURN_IF_ERROR(CheckRange("head_dim", head_dim, 16, 576, 8));
  SKETCHKV_RETURN_IF_ERROR(CheckRange("value_dim", value_dim, 16, 576, 8));
  SKETCHKV_RETURN_IF_ERROR(CheckRange("block_tokens", block_tokens, 1, 1024));
  SKETCHKV_RETURN_IF_ERROR(CheckDType("key_dtype", key_dtype));
  SKETCHKV_RETURN_IF_ERROR(CheckDType("value_dtype", value_dtype));
  SKETCHKV_RETURN_IF_ERROR(CheckScale("key_scale", key_dtype, key_scale));
  SKETCHKV_RETURN_IF_ERROR(CheckScale("value_scale", value_dtype, value_scale));
  SKETCHKV_RETURN_IF_ERROR(CheckRange("value_source", static_cast<uint32_t>(value_source), 1, 2));
  return value_source == ValueSource::kKeyPrefix ? CheckKeyPrefix(*this) : absl::OkStatus();
}

}  // namespace sketchkv
