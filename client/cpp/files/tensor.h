#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace sketchkv {

// An array in a file: a view, valid as long as the file object it came from. Row-major,
// little-endian.
struct NamedTensor {
  std::string name;
  std::string dtype;  // safetensors' names: "F32", "F16", "BF16", "F64", "U8", "I64", ...
  std::vector<uint64_t> shape;
  std::span<const std::byte> data;

  [[nodiscard]] uint64_t num_elements() const;
};

// Bytes of one element; 0 for a name no format of ours knows.
[[nodiscard]] size_t TensorDtypeBytes(absl::string_view dtype);

// Product of `shape` times the element size; nullopt on overflow.
[[nodiscard]] std::optional<uint64_t> TensorBytes(std::span<const uint64_t> shape,
                                                  size_t element_bytes);

// "[4, 256]"
[[nodiscard]] std::string ShapeString(std::span<const uint64_t> shape);

// Elements [begin, begin + out.size()) as float32 from F32, F64, F16, BF16, F8_E4M3, F8_E5M2 or an
// integer type (rounded). INVALID_ARGUMENT for a range outside the tensor or another dtype.
[[nodiscard]] absl::Status ReadFloats(const NamedTensor& tensor, uint64_t begin,
                                      std::span<float> out);

// The same for whole numbers: an integer type only, each in [-2^63, 2^63).
[[nodiscard]] absl::StatusOr<std::vector<int64_t>> ReadIntegers(const NamedTensor& tensor);

}  // namespace sketchkv
