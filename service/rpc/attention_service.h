#pragma once

#include "service/rpc/service_context.h"
#include "sketchkv/v1/attention.grpc.pb.h"

namespace sketchkv {

// AttendStream is a raw method: its stream parses and makes its messages itself (proto/bulk_message.h).
using AttentionServiceBase =
    v1::Attention::WithCallbackMethod_Score<v1::Attention::WithCallbackMethod_Attend<
        v1::Attention::WithRawCallbackMethod_AttendStream<v1::Attention::Service>>>;

class AttentionService final : public AttentionServiceBase {
 public:
  explicit AttentionService(ServiceContext* service) : service_(service) {}

  grpc::ServerWriteReactor<v1::ScoreResponse>* Score(grpc::CallbackServerContext* call,
                                                     const v1::AttentionRequest* request) override;
  grpc::ServerUnaryReactor* Attend(grpc::CallbackServerContext* call,
                                   const v1::AttentionRequest* request,
                                   v1::AttendResponse* response) override;
  RawBidiReactor* AttendStream(grpc::CallbackServerContext* call) override;

 private:
  ServiceContext* const service_;
};

}  // namespace sketchkv
