#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "client/cpp/examples/tiny_lm.h"
#include "client/cpp/files/safetensors.h"

namespace sketchkv::example {

// Reads Hugging Face's config.json. INVALID_ARGUMENT names the field.
[[nodiscard]] absl::StatusOr<TinyLmConfig> ReadConfig(const std::string& path);

// Reads tensors of a safetensors file as float32. The first error is kept in status() and
// everything read after it is empty, so that a list of weights reads as a list.
class WeightReader {
 public:
  [[nodiscard]] static absl::StatusOr<WeightReader> Open(const std::string& path);

  // The tensor must have this shape.
  [[nodiscard]] std::vector<float> Read(const std::string& name,
                                        const std::vector<uint64_t>& shape);
  // A [rows, columns] tensor as [columns, rows].
  [[nodiscard]] std::vector<float> ReadTransposed(const std::string& name, size_t rows,
                                                  size_t columns);
  [[nodiscard]] const absl::Status& status() const { return status_; }

 private:
  explicit WeightReader(SafetensorsFile file) : file_(std::move(file)) {}

  SafetensorsFile file_;
  absl::Status status_;
};

}  // namespace sketchkv::example
