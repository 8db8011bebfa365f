#pragma once

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace sketchkv {

// Element type of raw keys and values. fp8 values are multiplied by the layout's scale when read.
enum class DType : uint8_t { kBf16 = 1, kFp16 = 2, kFp32 = 3, kFp8E4M3 = 4, kFp8E5M2 = 5 };

[[nodiscard]] size_t DTypeBytes(DType dtype);
[[nodiscard]] absl::string_view DTypeName(DType dtype);  // "bf16", "fp16", "fp32", "fp8_e4m3", ...
[[nodiscard]] absl::StatusOr<DType> ParseDType(absl::string_view name);

// Where a block's values come from. kKeyPrefix (MLA): the values are the first value_dim channels
// of the keys and no value bytes exist; served with the `raw` profile only.
enum class ValueSource : uint8_t { kSeparate = 1, kKeyPrefix = 2 };

// The shape of one model's key/value cache. Immutable after registration.
struct KvLayout {
  uint32_t num_layers = 0;    // 1-256
  uint32_t num_kv_heads = 0;  // 1-256
  uint32_t head_dim = 0;      // 16-576, a multiple of 8
  uint32_t value_dim = 0;     // 16-576, a multiple of 8; may differ from head_dim
  uint32_t block_tokens = 0;  // 1-1024
  DType key_dtype = DType::kBf16;
  DType value_dtype = DType::kBf16;
  float key_scale = 1.0f;    // real key = stored fp8 key * key_scale; 1 unless key_dtype is fp8
  float value_scale = 1.0f;  // likewise for values
  ValueSource value_source = ValueSource::kSeparate;

  // INVALID_ARGUMENT naming the field, its value and its bound.
  [[nodiscard]] absl::Status Validate() const;

  // Bytes of one token's key row / value row of one head; 0 value bytes under kKeyPrefix.
  [[nodiscard]] size_t key_row_bytes() const { return head_dim * DTypeBytes(key_dtype); }
  [[nodiscard]] size_t value_row_bytes() const {
    return value_source == ValueSource::kKeyPrefix ? 0 : value_dim * DTypeBytes(value_dtype);
  }
};

}  // namespace sketchkv
