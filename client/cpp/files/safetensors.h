#pragma once

#include <map>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "client/cpp/files/mapped_file.h"
#include "client/cpp/files/tensor.h"

namespace sketchkv {

// A safetensors file (github.com/huggingface/safetensors): u64 header length, JSON header, tensors.
// Read-only and thread-safe after Open. Every size in the header is checked against the file before
// it is used: tensors lie one after another, without holes or overlap, and end where the file ends.
class SafetensorsFile {
 public:
  // INVALID_ARGUMENT naming tensor, field and both numbers for a damaged or unsupported file;
  // otherwise as MappedFile::Open.
  [[nodiscard]] static absl::StatusOr<SafetensorsFile> Open(const std::string& path);

  // In the order of their data. The views live as long as this object (moving it keeps them).
  [[nodiscard]] const std::vector<NamedTensor>& tensors() const { return tensors_; }
  // nullptr when there is none of that name.
  [[nodiscard]] const NamedTensor* Find(absl::string_view name) const;
  // The header's __metadata__.
  [[nodiscard]] const std::map<std::string, std::string>& metadata() const { return metadata_; }

 private:
  explicit SafetensorsFile(MappedFile file) : file_(std::move(file)) {}
  [[nodiscard]] absl::Status Parse();

  MappedFile file_;
  std::vector<NamedTensor> tensors_;
  std::map<std::string, std::string> metadata_;
};

// Writes `tensors` in the order given; their data must have the size shape and dtype say.
// INVALID_ARGUMENT naming the tensor otherwise.
[[nodiscard]] absl::Status WriteSafetensors(
    const std::string& path, std::span<const NamedTensor> tensors,
    const std::map<std::string, std::string>& metadata = {});

}  // namespace sketchkv
