#pragma once

#include "service/rpc/service_context.h"
#include "sketchkv/v1/attention.grpc.pb.h"

namespace sketchkv {

class AttentionService final : public v1::Attention::CallbackService {
 public:
  explicit AttentionService(ServiceContext* service) : service_(service) {}

  grpc::ServerWriteReactor<v1::ScoreResponse>* Score(grpc::CallbackServerContext* call,
                                                     const v1::AttentionRequest* request) override;
  grpc::ServerUnaryReactor* Attend(grpc::CallbackServerContext* call,
                                   const v1::AttentionRequest* request,
                                   v1::AttendResponse* response) override;
  grpc::ServerBidiReactor<v1::AttentionRequest, v1::AttendResponse>* AttendStream(
      grpc::CallbackServerContext* call) override;

 private:
  ServiceContext* const service_;
};

}  // namespace sketchkv
