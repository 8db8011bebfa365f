#include "client/cpp/src/tables.h"

#include <openssl/evp.h>

#include <cstring>
#include <map>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "client/cpp/src/convert.h"
#include "kernels/base/status_macros.h"

namespace sketchkv::client {
namespace {

constexpr size_t kDigestBytes = 16;  // of SHA-256's 32

std::string DigestOf(const ModelTables& tables) {
  const std::vector<uint8_t> bytes = tables.Serialize();
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned int size = 0;
  EVP_Digest(bytes.data(), bytes.size(), digest, &size, EVP_sha256(), nullptr);
  return std::string(reinterpret_cast<const char*>(digest), kDigestBytes);
}

std::string BytesOf(const std::vector<float>& floats) {
  return std::string(reinterpret_cast<const char*>(floats.data()), floats.size() * sizeof(float));
}

// A rest of less than 4 bytes is left out: the digest tells.
std::vector<float> FloatsOf(const std::string& bytes) {
  std::vector<float> floats(bytes.size() / sizeof(float));
  if (!floats.empty()) std::memcpy(floats.data(), bytes.data(), floats.size() * sizeof(float));
  return floats;
}

Basis KernelBasis(const BasisSpec& spec) { return {spec.rows, spec.group_bits, spec.group_rms}; }
BasisSpec SpecOf(const Basis& basis) { return {basis.rows, basis.group_bits, basis.group_rms}; }

Basis KernelBasis(const v1::Basis& message) {
  const std::string& bits = message.group_bits();
  return {FloatsOf(message.rows()), {bits.begin(), bits.end()}, FloatsOf(message.group_rms())};
}

v1::Basis ToProto(const Basis& basis) {
  v1::Basis out;
  out.set_rows(BytesOf(basis.rows));
  out.set_group_bits(std::string(basis.group_bits.begin(), basis.group_bits.end()));
  out.set_group_rms(BytesOf(basis.group_rms));
  return out;
}

HeadTable KernelTable(const HeadTableSpec& spec) {
  return {spec.key_mean, spec.outlier_channels, KernelBasis(spec.key_basis), spec.value_mean,
          KernelBasis(spec.value_basis)};
}

HeadTable KernelTable(const v1::HeadTable& message) {
  HeadTable out;
  out.key_mean = FloatsOf(message.key_mean());
  out.outlier_channels.assign(message.outlier_channels().begin(), message.outlier_channels().end());
  out.key_basis = KernelBasis(message.key_basis());
  out.value_mean = FloatsOf(message.value_mean());
  out.value_basis = KernelBasis(message.value_basis());
  return out;
}

v1::HeadTable ToProto(uint32_t layer, uint32_t head, const HeadTable& table) {
  v1::HeadTable out;
  out.set_layer(layer);
  out.set_head(head);
  out.set_key_mean(BytesOf(table.key_mean));
  out.mutable_outlier_channels()->Add(table.outlier_channels.begin(), table.outlier_channels.end());
  if (!table.key_basis.empty()) *out.mutable_key_basis() = ToProto(table.key_basis);
  out.set_value_mean(BytesOf(table.value_mean));
  if (!table.value_basis.empty()) *out.mutable_value_basis() = ToProto(table.value_basis);
  return out;
}

// Puts the tables of all heads in the order [layer][head], whatever order they come in. `code` is
// that of its errors.
class HeadTables {
 public:
  HeadTables(const CacheLayout& layout, absl::StatusCode code)
      : num_layers_(layout.num_layers), num_kv_heads_(layout.num_kv_heads), code_(code) {}

  absl::Status Add(uint32_t layer, uint32_t head, HeadTable table) {
    if (layer >= num_layers_ || head >= num_kv_heads_) {
      return absl::Status(
          code_, absl::StrCat("table is of layer ", layer, " head ", head, ", the layout has ",
                              num_layers_, " layers of ", num_kv_heads_));
    }
    const uint64_t index = uint64_t{layer} * num_kv_heads_ + head;
    if (!heads_.emplace(index, std::move(table)).second) {
      return absl::Status(
          code_, absl::StrCat("table of layer ", layer, " head ", head, " is given twice"));
    }
    return absl::OkStatus();
  }

  absl::StatusOr<std::vector<HeadTable>> Release() {
    const uint64_t wanted = uint64_t{num_layers_} * num_kv_heads_;
    if (heads_.size() != wanted) {
      return absl::Status(
          code_, absl::StrCat("tables are given for ", heads_.size(), " heads, want ", wanted));
    }
    std::vector<HeadTable> heads;
    for (auto& [index, table] : heads_) heads.push_back(std::move(table));
    return heads;
  }

 private:
  const uint32_t num_layers_;
  const uint32_t num_kv_heads_;
  const absl::StatusCode code_;
  std::map<uint64_t, HeadTable> heads_;
};

// Writes until the server has enough; Finish says of what.
grpc::Status WriteTables(const CacheLayout& layout, const ModelTables& tables, uint32_t timeout_ms,
                         grpc::ClientWriter<v1::UploadTablesRequest>* writer) {
  v1::UploadTablesRequest request;
  request.set_timeout_ms(timeout_ms);
  *request.mutable_layout() = client::ToProto(layout);
  const uint32_t num_heads = tables.num_layers() * tables.num_kv_heads();
  for (uint32_t i = 0; i < num_heads; ++i) {
    const uint32_t layer = i / tables.num_kv_heads(), head = i % tables.num_kv_heads();
    *request.mutable_table() = ToProto(layer, head, tables.at(layer, head));
    if (!writer->Write(request)) return writer->Finish();
    request.Clear();
  }
  writer->WritesDone();
  return writer->Finish();
}

// One try of GetTables.
Outcome ReadTables(grpc::ClientReader<v1::GetTablesResponse>* reader,
                   const grpc::ClientContext& context, HeadTables* tables) {
  v1::GetTablesResponse response;
  absl::Status added;
  while (reader->Read(&response)) {
    const v1::HeadTable& table = response.table();
    if (added.ok()) added = tables->Add(table.layer(), table.head(), KernelTable(table));
  }
  const Outcome ended = FromCall(reader->Finish(), context);
  return ended.status.ok() ? Outcome{added, 0} : ended;
}

}  // namespace

absl::StatusOr<std::string> UploadTables(ClientCore* core, const CacheLayout& layout,
                                         std::span<const HeadTableSpec> tables,
                                         TimePoint deadline) {
  HeadTables ordered(layout, absl::StatusCode::kInvalidArgument);
  for (const HeadTableSpec& table : tables) {
    SKETCHKV_RETURN_IF_ERROR(ordered.Add(table.layer, table.head, KernelTable(table)));
  }
  SKETCHKV_ASSIGN_OR_RETURN(std::vector<HeadTable> heads, ordered.Release());
  SKETCHKV_ASSIGN_OR_RETURN(const ModelTables checked,
                            ModelTables::Create(KernelLayout(layout), std::move(heads)));
  v1::UploadTablesResponse response;
  SKETCHKV_RETURN_IF_ERROR(WithRetries(core, deadline, [&](grpc::ClientContext* context) {
    const auto writer = core->models().UploadTables(context, &response);
    return FromCall(WriteTables(layout, checked, RemainingMs(deadline), writer.get()), *context);
  }));
  const std::string digest = DigestOf(checked);
  if (response.tables_digest() == digest) return digest;
  return absl::InternalError(absl::StrCat("the server's tables_digest is ",
                                          absl::BytesToHexString(response.tables_digest()),
                                          ", want ", absl::BytesToHexString(digest)));
}

absl::StatusOr<std::shared_ptr<const ModelTables>> FetchTables(ClientCore* core,
                                                               const v1::Model& model,
                                                               TimePoint deadline) {
  SKETCHKV_ASSIGN_OR_RETURN(const ModelInfo info, FromProto(model));
  v1::GetTablesRequest request;
  request.set_model(model.name());
  std::unique_ptr<HeadTables> tables;
  SKETCHKV_RETURN_IF_ERROR(WithRetries(core, deadline, [&](grpc::ClientContext* context) {
    tables = std::make_unique<HeadTables>(info.layout, absl::StatusCode::kInternal);
    return ReadTables(core->models().GetTables(context, request).get(), *context, tables.get());
  }));
  SKETCHKV_ASSIGN_OR_RETURN(std::vector<HeadTable> heads, tables->Release());
  absl::StatusOr<ModelTables> checked =
      ModelTables::Create(KernelLayout(info.layout), std::move(heads));
  if (!checked.ok()) {
    return absl::InternalError(absl::StrCat("the server's ", checked.status().message()));
  }
  const std::string digest = DigestOf(*checked);
  if (digest == model.tables_digest()) {
    return std::make_shared<const ModelTables>(*std::move(checked));
  }
  return absl::DataLossError(absl::StrCat("tables of model ", model.name(), " have the digest ",
                                          absl::BytesToHexString(digest), ", the model has ",
                                          absl::BytesToHexString(model.tables_digest())));
}

std::vector<HeadTableSpec> ToSpecs(const ModelTables& tables) {
  std::vector<HeadTableSpec> specs;
  for (uint32_t layer = 0; layer < tables.num_layers(); ++layer) {
    for (uint32_t head = 0; head < tables.num_kv_heads(); ++head) {
      const HeadTable& table = tables.at(layer, head);
      specs.push_back({layer, head, table.key_mean, table.outlier_channels, SpecOf(table.key_basis),
                       table.value_mean, SpecOf(table.value_basis)});
    }
  }
  return specs;
}

}  // namespace sketchkv::client
