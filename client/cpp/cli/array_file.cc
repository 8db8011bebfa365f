#include "client/cpp/cli/array_file.h"

#include <map>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "client/cpp/files/npy.h"
#include "client/cpp/files/safetensors.h"
#include "kernels/base/status_macros.h"

namespace sketchkv::cli {
namespace {

constexpr char kSafetensors[] = ".safetensors";

absl::StatusOr<InputArray> OpenSafetensors(const std::string& path, const std::string& name,
                                           bool named) {
  absl::StatusOr<SafetensorsFile> opened = SafetensorsFile::Open(path);
  if (!opened.ok()) return FileError(opened.status());
  const auto file = std::make_shared<const SafetensorsFile>(std::move(*opened));
  const NamedTensor* tensor = file->Find(name);
  if (tensor == nullptr && !named && file->tensors().size() == 1) tensor = &file->tensors()[0];
  if (tensor == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, " has no tensor \"", name, "\" among its ", file->tensors().size()));
  }
  return InputArray{file, *tensor};
}

}  // namespace

absl::Status FileError(const absl::Status& status) {
  if (!absl::IsNotFound(status)) return status;
  return absl::FailedPreconditionError(status.message());
}

bool HasExtension(const std::string& path, absl::string_view extension) {
  return absl::EndsWithIgnoreCase(path, extension);
}

absl::StatusOr<InputArray> OpenArray(const std::string& path, const std::string& default_name) {
  if (HasExtension(path, kSafetensors)) return OpenSafetensors(path, default_name, false);
  const size_t split = path.find(absl::StrCat(kSafetensors, ":"));
  if (split != std::string::npos) {
    const size_t end = split + sizeof(kSafetensors) - 1;
    return OpenSafetensors(path.substr(0, end), path.substr(end + 1), true);
  }
  absl::StatusOr<NpyFile> opened = NpyFile::Open(path);
  if (!opened.ok()) return FileError(opened.status());
  const auto file = std::make_shared<const NpyFile>(std::move(*opened));
  return InputArray{file, file->tensor()};
}

absl::Status WriteArrays(const std::vector<OutputArray>& arrays) {
  std::map<std::string, std::vector<NamedTensor>> files;
  for (const OutputArray& array : arrays) {
    if (HasExtension(array.path, kSafetensors)) {
      files[array.path].push_back(array.tensor);
    } else {
      SKETCHKV_RETURN_IF_ERROR(FileError(WriteNpy(array.path, array.tensor)));
    }
  }
  for (const auto& [path, tensors] : files) {
    SKETCHKV_RETURN_IF_ERROR(FileError(WriteSafetensors(path, tensors)));
  }
  return absl::OkStatus();
}

}  // namespace sketchkv::cli
