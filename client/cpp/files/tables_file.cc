#include "client/cpp/files/tables_file.h"

#include <algorithm>
#include <deque>
#include <map>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "client/cpp/files/float_formats.h"
#include "client/cpp/files/safetensors.h"
#include "kernels/base/status_macros.h"

namespace sketchkv {
namespace {

using nlohmann::json;

constexpr char kVersionKey[] = "sketchkv.tables";
constexpr char kVersion[] = "1";
constexpr char kProfilesKey[] = "profiles";
constexpr uint32_t kMaxLayersOrHeads = 256;  // as KvLayout's

std::string HeadName(size_t layer, size_t head) {
  return absl::StrCat("layers.", layer, ".heads.", head);
}

absl::Status Bad(absl::string_view tensor, absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat("tensor \"", tensor, "\" ", what));
}

struct Place {
  uint32_t layer = 0;
  uint32_t head = 0;
  std::string field;
};

absl::Status ReadIndex(const std::string& name, absl::string_view what, absl::string_view text,
                       uint32_t* index) {
  if (!absl::SimpleAtoi(text, index) || absl::StrCat(*index) != text) {
    return Bad(name, absl::StrCat("has no ", what, " number where layers.L.heads.H.FIELD has one"));
  }
  if (*index < kMaxLayersOrHeads) return absl::OkStatus();
  return Bad(name, absl::StrCat("has ", what, " ", *index, ", must be below ", kMaxLayersOrHeads));
}

absl::StatusOr<Place> ParseName(const std::string& name) {
  const std::vector<std::string> parts = absl::StrSplit(name, '.');
  if (parts.size() != 5 || parts[0] != "layers" || parts[2] != "heads") {
    return Bad(name, "is not named layers.L.heads.H.FIELD");
  }
  Place place;
  SKETCHKV_RETURN_IF_ERROR(ReadIndex(name, "layer", parts[1], &place.layer));
  SKETCHKV_RETURN_IF_ERROR(ReadIndex(name, "head", parts[3], &place.head));
  place.field = parts[4];
  return place;
}

absl::Status CheckForm(const NamedTensor& tensor, absl::string_view dtype, size_t rank) {
  if (tensor.dtype != dtype) {
    return Bad(tensor.name, absl::StrCat("has dtype ", tensor.dtype, ", must have ", dtype));
  }
  if (tensor.shape.size() == rank) return absl::OkStatus();
  return Bad(tensor.name, absl::StrCat("has shape ", ShapeString(tensor.shape), ", must have ",
                                       rank, rank == 1 ? " dimension" : " dimensions"));
}

absl::Status ReadTensor(const NamedTensor& tensor, absl::string_view dtype, size_t rank,
                        std::vector<float>* out) {
  SKETCHKV_RETURN_IF_ERROR(CheckForm(tensor, dtype, rank));
  out->resize(tensor.num_elements());
  return ReadFloats(tensor, 0, *out);
}

template <typename T>
absl::Status ReadWhole(const NamedTensor& tensor, absl::string_view dtype, std::vector<T>* out) {
  SKETCHKV_RETURN_IF_ERROR(CheckForm(tensor, dtype, 1));
  SKETCHKV_ASSIGN_OR_RETURN(const std::vector<int64_t> numbers, ReadIntegers(tensor));
  for (size_t i = 0; i < numbers.size(); ++i) {
    if (numbers[i] < 0) {
      return Bad(tensor.name, absl::StrCat("has ", numbers[i], " at ", i, ", must be 0 or more"));
    }
  }
  out->assign(numbers.begin(), numbers.end());
  return absl::OkStatus();
}

// `field` of a basis without its "key_" or "value_"; NOT_FOUND for another field.
absl::Status ReadBasisField(const NamedTensor& tensor, absl::string_view field, Basis* basis) {
  if (field == "basis") return ReadTensor(tensor, "F16", 2, &basis->rows);
  if (field == "group_bits") return ReadWhole(tensor, "U8", &basis->group_bits);
  if (field == "group_rms") return ReadTensor(tensor, "F32", 1, &basis->group_rms);
  return absl::NotFoundError("");
}

absl::Status ReadField(const NamedTensor& tensor, absl::string_view field, HeadTable* head) {
  if (field == "key_mean") return ReadTensor(tensor, "F32", 1, &head->key_mean);
  if (field == "value_mean") return ReadTensor(tensor, "F32", 1, &head->value_mean);
  if (field == "outlier_channels") return ReadWhole(tensor, "I32", &head->outlier_channels);
  const std::pair<absl::string_view, absl::string_view> parts =
      absl::StrSplit(field, absl::MaxSplits('_', 1));
  absl::Status status = absl::NotFoundError("");
  if (parts.first == "key") status = ReadBasisField(tensor, parts.second, &head->key_basis);
  if (parts.first == "value") status = ReadBasisField(tensor, parts.second, &head->value_basis);
  if (!absl::IsNotFound(status)) return status;
  return Bad(tensor.name, absl::StrCat("has the unknown field ", field));
}

using TensorIndex = std::map<std::string, const NamedTensor*>;

const NamedTensor* Find(const TensorIndex& index, const std::string& name) {
  const auto found = index.find(name);
  return found == index.end() ? nullptr : found->second;
}

// Columns of `tensor` are `dim`, or say what it is.
absl::Status CheckColumns(const NamedTensor* tensor, uint32_t* dim) {
  if (tensor == nullptr) return absl::OkStatus();
  const uint64_t columns = tensor->shape.back();
  if (*dim == 0 && columns > 0 && columns <= UINT32_MAX) *dim = static_cast<uint32_t>(columns);
  if (columns == *dim && columns > 0) return absl::OkStatus();
  return Bad(tensor->name, absl::StrCat("has shape ", ShapeString(tensor->shape),
                                        ", the last must be ", std::max(*dim, 1u)));
}

// The parts of a basis go together: [rows, dim], one number of bits and one RMS a group of rows.
absl::Status CheckParts(const TensorIndex& index, const std::string& prefix, uint32_t* dim) {
  const NamedTensor* basis = Find(index, prefix + "_basis");
  SKETCHKV_RETURN_IF_ERROR(CheckColumns(Find(index, prefix + "_mean"), dim));
  SKETCHKV_RETURN_IF_ERROR(CheckColumns(basis, dim));
  const uint64_t rows = basis == nullptr ? 0 : basis->shape[0];
  const uint64_t groups = (rows + kBasisGroupRows - 1) / kBasisGroupRows;
  for (const char* part : {"_group_bits", "_group_rms"}) {
    const NamedTensor* tensor = Find(index, prefix + part);
    const uint64_t have = tensor == nullptr ? 0 : tensor->shape[0];
    if (have == groups) continue;
    return Bad(prefix + part, absl::StrCat("has ", have, " numbers, the ", rows, " rows of \"",
                                           prefix, "_basis\" need ", groups));
  }
  return absl::OkStatus();
}

absl::Status CheckMetadata(const SafetensorsFile& file, std::vector<std::string>* profiles) {
  const auto version = file.metadata().find(kVersionKey);
  if (version == file.metadata().end()) {
    return absl::InvalidArgumentError(
        absl::StrCat("__metadata__ has no \"", kVersionKey, "\": this is no file of tables"));
  }
  if (version->second != kVersion) {
    return absl::InvalidArgumentError(absl::StrCat("__metadata__ \"", kVersionKey, "\" is ",
                                                   version->second, ", must be ", kVersion));
  }
  const auto text = file.metadata().find(kProfilesKey);
  if (text == file.metadata().end()) return absl::OkStatus();
  const json list = json::parse(text->second, nullptr, /*allow_exceptions=*/false);
  if (!list.is_array()) {
    return absl::InvalidArgumentError("__metadata__ \"profiles\" is not a JSON list");
  }
  for (const json& profile : list) {
    if (!profile.is_string()) {
      return absl::InvalidArgumentError("__metadata__ \"profiles\" has an entry that is no string");
    }
    profiles->push_back(profile.get<std::string>());
  }
  return absl::OkStatus();
}

absl::StatusOr<TablesFile> Parse(const SafetensorsFile& file) {
  TablesFile out;
  SKETCHKV_RETURN_IF_ERROR(CheckMetadata(file, &out.profiles));
  TensorIndex index;
  std::map<std::pair<uint32_t, uint32_t>, HeadTable> heads;
  for (const NamedTensor& tensor : file.tensors()) {
    index.emplace(tensor.name, &tensor);
    SKETCHKV_ASSIGN_OR_RETURN(const Place place, ParseName(tensor.name));
    SKETCHKV_RETURN_IF_ERROR(ReadField(tensor, place.field, &heads[{place.layer, place.head}]));
    out.num_layers = std::max(out.num_layers, place.layer + 1);
    out.num_kv_heads = std::max(out.num_kv_heads, place.head + 1);
  }
  if (heads.empty()) return absl::InvalidArgumentError("there are 0 tensors, must be 1 or more");
  for (uint32_t layer = 0; layer < out.num_layers; ++layer) {
    for (uint32_t head = 0; head < out.num_kv_heads; ++head) {
      const auto found = heads.find({layer, head});
      if (found == heads.end()) {
        return absl::InvalidArgumentError(
            absl::StrCat("there is no tensor of ", HeadName(layer, head), ", there are ",
                         out.num_layers, " layers of ", out.num_kv_heads, " heads"));
      }
      const std::string name = HeadName(layer, head);
      SKETCHKV_RETURN_IF_ERROR(CheckParts(index, name + ".key", &out.head_dim));
      SKETCHKV_RETURN_IF_ERROR(CheckParts(index, name + ".value", &out.value_dim));
      out.heads.push_back(std::move(found->second));
    }
  }
  return out;
}

// Tensors are views; what they view and nobody else holds is kept in deques, which do not move it.
struct Writer {
  std::vector<NamedTensor> tensors;
  std::deque<std::vector<int32_t>> whole;
  std::deque<std::vector<uint16_t>> halves;

  template <typename T>
  void Add(std::string name, const char* dtype, std::vector<uint64_t> shape,
           const std::vector<T>& numbers) {
    if (numbers.empty()) return;
    tensors.push_back(
        {std::move(name), dtype, std::move(shape), std::as_bytes(std::span(numbers))});
  }
};

absl::Status CheckSize(const std::string& tensor, uint64_t have, uint64_t wanted) {
  if (have == wanted) return absl::OkStatus();
  return Bad(tensor, absl::StrCat("has ", have, " numbers, must have ", wanted));
}

// The parts named `prefix`_mean, _basis, ...: rows of `dim`.
absl::Status AddRows(const std::string& prefix, const std::vector<float>& mean, const Basis& basis,
                     uint32_t dim, Writer* writer) {
  if (!mean.empty()) {
    SKETCHKV_RETURN_IF_ERROR(CheckSize(prefix + "_mean", mean.size(), dim));
    writer->Add(prefix + "_mean", "F32", {dim}, mean);
  }
  const uint64_t rows = dim == 0 ? 0 : basis.rows.size() / dim;
  const uint64_t groups = (rows + kBasisGroupRows - 1) / kBasisGroupRows;
  SKETCHKV_RETURN_IF_ERROR(CheckSize(prefix + "_basis", basis.rows.size(), rows * dim));
  SKETCHKV_RETURN_IF_ERROR(CheckSize(prefix + "_group_bits", basis.group_bits.size(), groups));
  SKETCHKV_RETURN_IF_ERROR(CheckSize(prefix + "_group_rms", basis.group_rms.size(), groups));
  std::vector<uint16_t>& halves = writer->halves.emplace_back();
  for (const float x : basis.rows) halves.push_back(FloatToFp16(x));
  writer->Add(prefix + "_basis", "F16", {rows, dim}, halves);
  writer->Add(prefix + "_group_bits", "U8", {groups}, basis.group_bits);
  writer->Add(prefix + "_group_rms", "F32", {groups}, basis.group_rms);
  return absl::OkStatus();
}

absl::Status AddHead(const TablesFile& file, size_t index, Writer* writer) {
  const HeadTable& head = file.heads[index];
  const std::string name = HeadName(index / file.num_kv_heads, index % file.num_kv_heads);
  const size_t before = writer->tensors.size();
  writer->whole.emplace_back(head.outlier_channels.begin(), head.outlier_channels.end());
  writer->Add(name + ".outlier_channels", "I32", {head.outlier_channels.size()},
              writer->whole.back());
  SKETCHKV_RETURN_IF_ERROR(
      AddRows(name + ".key", head.key_mean, head.key_basis, file.head_dim, writer));
  SKETCHKV_RETURN_IF_ERROR(
      AddRows(name + ".value", head.value_mean, head.value_basis, file.value_dim, writer));
  if (writer->tensors.size() > before) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("the table of ", name, " is empty"));
}

}  // namespace

float RoundToTable(float value) { return Fp16ToFloat(FloatToFp16(value)); }

absl::StatusOr<TablesFile> ReadTablesFile(const std::string& path) {
  SKETCHKV_ASSIGN_OR_RETURN(const SafetensorsFile file, SafetensorsFile::Open(path));
  absl::StatusOr<TablesFile> tables = Parse(file);
  if (tables.ok()) return tables;
  return absl::InvalidArgumentError(absl::StrCat(path, ": ", tables.status().message()));
}

absl::Status WriteTablesFile(const std::string& path, const TablesFile& file) {
  if (file.heads.size() != size_t{file.num_layers} * file.num_kv_heads) {
    return absl::InvalidArgumentError(absl::StrCat("tables are given for ", file.heads.size(),
                                                   " heads, must be for ", file.num_layers,
                                                   " layers of ", file.num_kv_heads));
  }
  Writer writer;
  for (size_t i = 0; i < file.heads.size(); ++i) {
    SKETCHKV_RETURN_IF_ERROR(AddHead(file, i, &writer));
  }
  return WriteSafetensors(
      path, writer.tensors,
      {{kVersionKey, kVersion},
       {kProfilesKey, json(file.profiles).dump(-1, ' ', false, json::error_handler_t::replace)}});
}

}  // namespace sketchkv
