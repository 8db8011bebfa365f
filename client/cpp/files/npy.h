#pragma once

#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "client/cpp/files/mapped_file.h"
#include "client/cpp/files/tensor.h"

namespace sketchkv {

// A NumPy array file (numpy.lib.format, versions 1 to 3) of a plain little-endian dtype in C order.
// Read-only and thread-safe after Open.
class NpyFile {
 public:
  // INVALID_ARGUMENT naming the field for a damaged or unsupported file (big-endian, Fortran order,
  // structured or object arrays, surplus or missing bytes); otherwise as MappedFile::Open.
  [[nodiscard]] static absl::StatusOr<NpyFile> Open(const std::string& path);

  // Name: empty. The view lives as long as this object (moving it keeps it).
  [[nodiscard]] const NamedTensor& tensor() const { return tensor_; }
  // The header's text, as it stands in the file.
  [[nodiscard]] const std::string& header() const { return header_; }

 private:
  explicit NpyFile(MappedFile file) : file_(std::move(file)) {}
  [[nodiscard]] absl::Status Parse();

  MappedFile file_;
  std::string header_;
  NamedTensor tensor_;
};

// Writes version 1. INVALID_ARGUMENT for a dtype NumPy has not (BF16, fp8) or data of another size
// than shape and dtype say.
[[nodiscard]] absl::Status WriteNpy(const std::string& path, const NamedTensor& tensor);

}  // namespace sketchkv
