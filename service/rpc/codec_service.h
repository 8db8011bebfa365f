#pragma once

#include "service/rpc/service_context.h"
#include "sketchkv/v1/codec.grpc.pb.h"

namespace sketchkv {

class CodecService final : public v1::Codec::CallbackService {
 public:
  explicit CodecService(ServiceContext* service) : service_(service) {}

  grpc::ServerBidiReactor<v1::EncodeRequest, v1::EncodeResponse>* Encode(
      grpc::CallbackServerContext* call) override;
  grpc::ServerBidiReactor<v1::DecodeRequest, v1::DecodeResponse>* Decode(
      grpc::CallbackServerContext* call) override;

 private:
  ServiceContext* const service_;
};

}  // namespace sketchkv
