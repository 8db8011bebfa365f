#pragma once

#include "service/rpc/service_context.h"
#include "sketchkv/v1/models.grpc.pb.h"

namespace sketchkv {

class ModelsService final : public v1::Models::CallbackService {
 public:
  explicit ModelsService(ServiceContext* service) : service_(service) {}

  grpc::ServerUnaryReactor* RegisterModel(grpc::CallbackServerContext* call,
                                          const v1::RegisterModelRequest* request,
                                          v1::Model* response) override;
  grpc::ServerUnaryReactor* GetModel(grpc::CallbackServerContext* call,
                                     const v1::GetModelRequest* request,
                                     v1::Model* response) override;
  grpc::ServerUnaryReactor* ListModels(grpc::CallbackServerContext* call,
                                       const v1::ListModelsRequest* request,
                                       v1::ListModelsResponse* response) override;
  grpc::ServerUnaryReactor* UnregisterModel(grpc::CallbackServerContext* call,
                                            const v1::UnregisterModelRequest* request,
                                            v1::UnregisterModelResponse* response) override;
  grpc::ServerWriteReactor<v1::GetProjectionResponse>* GetProjection(
      grpc::CallbackServerContext* call, const v1::GetProjectionRequest* request) override;
  grpc::ServerReadReactor<v1::UploadTablesRequest>* UploadTables(
      grpc::CallbackServerContext* call, v1::UploadTablesResponse* response) override;
  grpc::ServerWriteReactor<v1::GetTablesResponse>* GetTables(
      grpc::CallbackServerContext* call, const v1::GetTablesRequest* request) override;

 private:
  ServiceContext* const service_;
};

}  // namespace sketchkv
