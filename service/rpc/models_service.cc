#include "service/rpc/models_service.h"

#include <algorithm>
#include <memory>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"
#include "service/rpc/computed_stream.h"
#include "service/rpc/convert.h"
#include "service/rpc/convert_tables.h"
#include "service/rpc/tables_upload.h"
#include "service/rpc/unary.h"

namespace sketchkv {
namespace {

using ProjectionStream = ComputedStream<v1::GetProjectionResponse>;
using TablesStream = ComputedStream<v1::GetTablesResponse>;

absl::Status FillProjection(const ServiceContext& service, const v1::GetProjectionRequest& request,
                            std::deque<v1::GetProjectionResponse>* messages) {
  SKETCHKV_ASSIGN_OR_RETURN(const std::shared_ptr<const Model> model,
                            service.engine->models().Get(kDefaultTenant, request.model()));
  const KvLayout& layout = model->layout();
  if (request.layer() >= layout.num_layers) {
    return absl::InvalidArgumentError(
        absl::StrCat("layer is ", request.layer(), "; the model has ", layout.num_layers));
  }
  const std::span<const float> rows = model->codec->dense_projection(request.layer());
  if (rows.empty()) {
    return absl::FailedPreconditionError(absl::StrCat("layer ", request.layer(), " of model ",
                                                      model->name, " has no dense projection"));
  }
  const size_t floats_per_chunk =
      kMaxChunkBytes / sizeof(float) / layout.head_dim * layout.head_dim;
  for (size_t begin = 0; begin < rows.size(); begin += floats_per_chunk) {
    const size_t count = std::min(floats_per_chunk, rows.size() - begin);
    v1::GetProjectionResponse message;
    if (begin == 0) message.set_num_rows(static_cast<uint32_t>(rows.size() / layout.head_dim));
    message.set_payload(rows.data() + begin, count * sizeof(float));
    messages->push_back(std::move(message));
  }
  return absl::OkStatus();
}

absl::Status FillTables(const ServiceContext& service, const v1::GetTablesRequest& request,
                        TablesStream::Result* result) {
  SKETCHKV_ASSIGN_OR_RETURN(const std::shared_ptr<const Model> model,
                            service.engine->models().Get(kDefaultTenant, request.model()));
  const std::shared_ptr<const ModelTables>& tables = model->codec->tables();
  if (tables == nullptr) {
    return absl::FailedPreconditionError(
        absl::StrCat("no profile of model ", model->name, " uses tables"));
  }
  SKETCHKV_ASSIGN_OR_RETURN(result->hold, service.inflight->Acquire(tables->size_bytes()));
  for (uint32_t layer = 0; layer < tables->num_layers(); ++layer) {
    for (uint32_t head = 0; head < tables->num_kv_heads(); ++head) {
      *result->messages.emplace_back().mutable_table() =
          ToProto(layer, head, tables->at(layer, head));
    }
  }
  return absl::OkStatus();
}

}  // namespace

grpc::ServerUnaryReactor* ModelsService::RegisterModel(grpc::CallbackServerContext* call,
                                                       const v1::RegisterModelRequest* request,
                                                       v1::Model* response) {
  return RunUnary(*service_, call, 0, [this, request, response]() -> absl::Status {
    SKETCHKV_ASSIGN_OR_RETURN(const KvLayout layout, FromProto(request->layout()));
    std::vector<LayerProfileRequest> profiles;
    for (const v1::ProfileRequest& message : request->profiles()) {
      SKETCHKV_ASSIGN_OR_RETURN(LayerProfileRequest profile, FromProto(message));
      profiles.push_back(std::move(profile));
    }
    SKETCHKV_ASSIGN_OR_RETURN(const std::optional<Digest128> tables_digest,
                              DigestFromProto("tables_digest", request->tables_digest()));
    SKETCHKV_ASSIGN_OR_RETURN(const std::shared_ptr<const Model> model,
                              service_->engine->models().Register(kDefaultTenant, request->name(),
                                                                  layout, profiles, tables_digest));
    *response = ToProto(*model);
    return absl::OkStatus();
  });
}

grpc::ServerUnaryReactor* ModelsService::GetModel(grpc::CallbackServerContext* call,
                                                  const v1::GetModelRequest* request,
                                                  v1::Model* response) {
  return RunUnary(*service_, call, 0, [this, request, response]() -> absl::Status {
    SKETCHKV_ASSIGN_OR_RETURN(const std::shared_ptr<const Model> model,
                              service_->engine->models().Get(kDefaultTenant, request->name()));
    *response = ToProto(*model);
    return absl::OkStatus();
  });
}

grpc::ServerUnaryReactor* ModelsService::ListModels(grpc::CallbackServerContext* call,
                                                    const v1::ListModelsRequest* request,
                                                    v1::ListModelsResponse* response) {
  return RunUnary(*service_, call, 0, [this, response]() -> absl::Status {
    for (const auto& model : service_->engine->models().List(kDefaultTenant)) {
      *response->add_models() = ToProto(*model);
    }
    return absl::OkStatus();
  });
}

grpc::ServerUnaryReactor* ModelsService::UnregisterModel(grpc::CallbackServerContext* call,
                                                         const v1::UnregisterModelRequest* request,
                                                         v1::UnregisterModelResponse* response) {
  return RunUnary(*service_, call, 0, [this, request, response]() -> absl::Status {
    SKETCHKV_ASSIGN_OR_RETURN(const uint64_t dropped,
                              service_->engine->Unregister(kDefaultTenant, request->name()));
    response->set_dropped_blocks(dropped);
    return absl::OkStatus();
  });
}

grpc::ServerWriteReactor<v1::GetProjectionResponse>* ModelsService::GetProjection(
    grpc::CallbackServerContext* call, const v1::GetProjectionRequest* request) {
  return new ProjectionStream(*service_, call, 0, [this, request] {
    ProjectionStream::Result result;
    result.status = FillProjection(*service_, *request, &result.messages);
    if (!result.status.ok()) result.messages.clear();
    return result;
  });
}

grpc::ServerReadReactor<v1::UploadTablesRequest>* ModelsService::UploadTables(
    grpc::CallbackServerContext* call, v1::UploadTablesResponse* response) {
  return new TablesUpload(service_, call, response);
}

grpc::ServerWriteReactor<v1::GetTablesResponse>* ModelsService::GetTables(
    grpc::CallbackServerContext* call, const v1::GetTablesRequest* request) {
  return new TablesStream(*service_, call, 0, [this, request] {
    TablesStream::Result result;
    result.status = FillTables(*service_, *request, &result);
    return result;
  });
}

}  // namespace sketchkv
