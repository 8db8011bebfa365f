#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "client/cpp/files/tensor.h"

namespace sketchkv::cli {

// One array of a file, which stays open as long as this lives.
struct InputArray {
  std::shared_ptr<const void> file;
  NamedTensor tensor;
};

// FILE.npy, FILE.safetensors, or FILE.safetensors:NAME. Without a NAME a safetensors file is asked
// for `default_name` and, if it holds but one tensor, for that. Errors name the file; none is
// NOT_FOUND, which means a miss in this program.
[[nodiscard]] absl::StatusOr<InputArray> OpenArray(const std::string& path,
                                                   const std::string& default_name);

struct OutputArray {
  std::string path;  // .safetensors, else npy
  NamedTensor tensor;
};

// Arrays with the same safetensors path go into one file.
[[nodiscard]] absl::Status WriteArrays(const std::vector<OutputArray>& arrays);

// A file that is not there is no miss: NOT_FOUND becomes FAILED_PRECONDITION.
[[nodiscard]] absl::Status FileError(const absl::Status& status);

[[nodiscard]] bool HasExtension(const std::string& path, absl::string_view extension);

}  // namespace sketchkv::cli
