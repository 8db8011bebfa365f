#include "client/cpp/files/safetensors.h"

#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>
#include <tuple>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"

namespace sketchkv {
namespace {

using nlohmann::json;

// The largest published models need about 1 MiB; what is parsed takes up to 30 times its text.
constexpr uint64_t kMaxHeaderBytes = 16 << 20;
constexpr size_t kLengthBytes = 8;
constexpr size_t kMaxRank = 32;

struct Placed {
  uint64_t begin = 0;
  uint64_t end = 0;
  NamedTensor tensor;
};

absl::Status Bad(absl::string_view name, absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat("tensor \"", name, "\": ", what));
}

absl::Status ReadShape(const json& entry, NamedTensor* tensor) {
  const auto it = entry.find("shape");
  if (it == entry.end() || !it->is_array()) return Bad(tensor->name, "shape is not a list");
  if (it->size() > kMaxRank) {
    return Bad(tensor->name,
               absl::StrCat("shape has ", it->size(), " entries, at most ", kMaxRank));
  }
  for (const json& extent : *it) {
    if (!extent.is_number_unsigned()) return Bad(tensor->name, "shape holds no whole number");
    tensor->shape.push_back(extent.get<uint64_t>());
  }
  return absl::OkStatus();
}

// One entry of the header, its offsets checked against the `data_bytes` the file has.
absl::StatusOr<Placed> ReadEntry(const std::string& name, const json& entry, uint64_t data_bytes) {
  Placed placed;
  placed.tensor.name = name;
  if (!entry.is_object()) return Bad(name, "entry is not an object");
  const auto dtype = entry.find("dtype");
  if (dtype == entry.end() || !dtype->is_string()) return Bad(name, "dtype is not a string");
  placed.tensor.dtype = dtype->get<std::string>();
  const size_t element_bytes = TensorDtypeBytes(placed.tensor.dtype);
  if (element_bytes == 0) {
    return Bad(name, absl::StrCat("dtype \"", placed.tensor.dtype, "\" is not supported"));
  }
  SKETCHKV_RETURN_IF_ERROR(ReadShape(entry, &placed.tensor));
  const auto offsets = entry.find("data_offsets");
  if (offsets == entry.end() || !offsets->is_array() || offsets->size() != 2 ||
      !(*offsets)[0].is_number_unsigned() || !(*offsets)[1].is_number_unsigned()) {
    return Bad(name, "data_offsets is not a pair of whole numbers");
  }
  placed.begin = (*offsets)[0].get<uint64_t>();
  placed.end = (*offsets)[1].get<uint64_t>();
  if (placed.begin > placed.end || placed.end > data_bytes) {
    return Bad(name, absl::StrCat("data_offsets ", placed.begin, " to ", placed.end,
                                  " do not lie in the file's ", data_bytes, " bytes of data"));
  }
  const auto bytes = TensorBytes(placed.tensor.shape, element_bytes);
  if (!bytes || *bytes != placed.end - placed.begin) {
    return Bad(name, absl::StrCat("data_offsets span ", placed.end - placed.begin, " bytes, shape ",
                                  ShapeString(placed.tensor.shape), " of ", placed.tensor.dtype,
                                  " takes ", bytes ? absl::StrCat(*bytes) : "more than 2^64"));
  }
  return placed;
}

absl::Status ReadMetadata(const json& entry, std::map<std::string, std::string>* metadata) {
  if (!entry.is_object()) return absl::InvalidArgumentError("__metadata__ is not an object");
  for (const auto& [key, value] : entry.items()) {
    if (!value.is_string()) {
      return absl::InvalidArgumentError(absl::StrCat("__metadata__ \"", key, "\" is not a string"));
    }
    metadata->emplace(key, value.get<std::string>());
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<SafetensorsFile> SafetensorsFile::Open(const std::string& path) {
  SKETCHKV_ASSIGN_OR_RETURN(MappedFile mapped, MappedFile::Open(path));
  SafetensorsFile file(std::move(mapped));
  const absl::Status status = file.Parse();
  if (!status.ok()) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": ", status.message()));
  }
  return file;
}

absl::Status SafetensorsFile::Parse() {
  const std::span<const std::byte> bytes = file_.bytes();
  if (bytes.size() < kLengthBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("file of ", bytes.size(), " bytes has no header length of ", kLengthBytes));
  }
  uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, bytes.data(), kLengthBytes);
  const uint64_t limit = std::min<uint64_t>(kMaxHeaderBytes, bytes.size() - kLengthBytes);
  if (header_bytes > limit) {
    return absl::InvalidArgumentError(
        absl::StrCat("header length ", header_bytes, " is over ", limit));
  }
  const char* text = reinterpret_cast<const char*>(bytes.data()) + kLengthBytes;
  const json header = json::parse(text, text + header_bytes, nullptr, /*allow_exceptions=*/false);
  if (!header.is_object()) return absl::InvalidArgumentError("header is not a JSON object");

  const std::span<const std::byte> data = bytes.subspan(kLengthBytes + header_bytes);
  std::vector<Placed> placed;
  for (const auto& [name, entry] : header.items()) {
    if (name == "__metadata__") {
      SKETCHKV_RETURN_IF_ERROR(ReadMetadata(entry, &metadata_));
      continue;
    }
    SKETCHKV_ASSIGN_OR_RETURN(Placed one, ReadEntry(name, entry, data.size()));
    one.tensor.data = data.subspan(one.begin, one.end - one.begin);
    placed.push_back(std::move(one));
  }
  std::sort(placed.begin(), placed.end(), [](const Placed& a, const Placed& b) {
    return std::tie(a.begin, a.end) < std::tie(b.begin, b.end);
  });
  uint64_t end = 0;
  for (Placed& one : placed) {
    if (one.begin != end) {
      return Bad(one.tensor.name, absl::StrCat("data begins at ", one.begin,
                                               ", the tensor before it ends at ", end));
    }
    end = one.end;
    tensors_.push_back(std::move(one.tensor));
  }
  if (end != data.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("tensors end at ", end, ", the file has ", data.size(), " bytes of data"));
  }
  return absl::OkStatus();
}

const NamedTensor* SafetensorsFile::Find(absl::string_view name) const {
  for (const NamedTensor& tensor : tensors_) {
    if (tensor.name == name) return &tensor;
  }
  return nullptr;
}

absl::Status WriteSafetensors(const std::string& path, std::span<const NamedTensor> tensors,
                              const std::map<std::string, std::string>& metadata) {
  json header = json::object();
  if (!metadata.empty()) header["__metadata__"] = metadata;
  uint64_t end = 0;
  for (const NamedTensor& tensor : tensors) {
    const auto bytes = TensorBytes(tensor.shape, TensorDtypeBytes(tensor.dtype));
    if (!bytes || *bytes != tensor.data.size()) {
      return Bad(tensor.name, absl::StrCat("data has ", tensor.data.size(), " bytes, shape ",
                                           ShapeString(tensor.shape), " of ", tensor.dtype,
                                           " takes ", bytes.value_or(0)));
    }
    header[tensor.name] = {
        {"dtype", tensor.dtype}, {"shape", tensor.shape}, {"data_offsets", {end, end + *bytes}}};
    end += *bytes;
  }
  std::string text = header.dump(-1, ' ', false, json::error_handler_t::replace);
  text.resize((text.size() + 7) / 8 * 8, ' ');  // the format wants data aligned to 8 bytes
  const uint64_t header_bytes = text.size();
  std::vector<std::span<const std::byte>> pieces;
  pieces.push_back(std::as_bytes(std::span(&header_bytes, 1)));
  pieces.push_back(std::as_bytes(std::span(text)));
  for (const NamedTensor& tensor : tensors) pieces.push_back(tensor.data);
  return WriteFileAtomically(path, pieces);
}

}  // namespace sketchkv
