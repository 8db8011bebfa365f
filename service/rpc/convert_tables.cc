#include "service/rpc/convert_tables.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"

namespace sketchkv {
namespace {

absl::StatusOr<std::vector<float>> FloatsFromProto(const char* field, const std::string& bytes) {
  if (bytes.size() % sizeof(float) != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat(field, " has ", bytes.size(), " bytes; float32 needs a multiple of 4"));
  }
  std::vector<float> floats(bytes.size() / sizeof(float));
  if (!floats.empty()) std::memcpy(floats.data(), bytes.data(), bytes.size());
  return floats;
}

void FillFloats(const std::vector<float>& floats, std::string* bytes) {
  bytes->assign(reinterpret_cast<const char*>(floats.data()), floats.size() * sizeof(float));
}

absl::StatusOr<Basis> BasisFromProto(const v1::Basis& message) {
  Basis basis;
  SKETCHKV_ASSIGN_OR_RETURN(basis.rows, FloatsFromProto("rows", message.rows()));
  basis.group_bits.assign(message.group_bits().begin(), message.group_bits().end());
  SKETCHKV_ASSIGN_OR_RETURN(basis.group_rms, FloatsFromProto("group_rms", message.group_rms()));
  return basis;
}

void FillBasis(const Basis& basis, v1::Basis* message) {
  FillFloats(basis.rows, message->mutable_rows());
  message->mutable_group_bits()->assign(basis.group_bits.begin(), basis.group_bits.end());
  FillFloats(basis.group_rms, message->mutable_group_rms());
}

absl::StatusOr<HeadTable> TableFromProto(const v1::HeadTable& message) {
  HeadTable table;
  SKETCHKV_ASSIGN_OR_RETURN(table.key_mean, FloatsFromProto("key_mean", message.key_mean()));
  table.outlier_channels.assign(message.outlier_channels().begin(),
                                message.outlier_channels().end());
  SKETCHKV_ASSIGN_OR_RETURN(table.key_basis, BasisFromProto(message.key_basis()));
  SKETCHKV_ASSIGN_OR_RETURN(table.value_mean, FloatsFromProto("value_mean", message.value_mean()));
  SKETCHKV_ASSIGN_OR_RETURN(table.value_basis, BasisFromProto(message.value_basis()));
  return table;
}

}  // namespace

absl::StatusOr<HeadTable> FromProto(const v1::HeadTable& message) {
  absl::StatusOr<HeadTable> table = TableFromProto(message);
  if (table.ok()) return table;
  return absl::InvalidArgumentError(absl::StrCat("tables of layer ", message.layer(), " head ",
                                                 message.head(), ": ", table.status().message()));
}

v1::HeadTable ToProto(uint32_t layer, uint32_t head, const HeadTable& table) {
  v1::HeadTable message;
  message.set_layer(layer);
  message.set_head(head);
  FillFloats(table.key_mean, message.mutable_key_mean());
  message.mutable_outlier_channels()->Add(table.outlier_channels.begin(),
                                          table.outlier_channels.end());
  if (!table.key_basis.empty()) FillBasis(table.key_basis, message.mutable_key_basis());
  FillFloats(table.value_mean, message.mutable_value_mean());
  if (!table.value_basis.empty()) FillBasis(table.value_basis, message.mutable_value_basis());
  return message;
}

absl::StatusOr<std::optional<Digest128>> DigestFromProto(const char* field,
                                                         const std::string& bytes) {
  if (bytes.empty()) return std::optional<Digest128>();
  Digest128 digest;
  if (bytes.size() != digest.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat(field, " has ", bytes.size(), " bytes; it needs 0 or ", digest.size()));
  }
  std::copy(bytes.begin(), bytes.end(), digest.begin());
  return std::optional<Digest128>(digest);
}

}  // namespace sketchkv
