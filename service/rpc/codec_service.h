#pragma once

#include "service/rpc/service_context.h"
#include "sketchkv/v1/codec.grpc.pb.h"

namespace sketchkv {

// Raw methods: the streams parse and make their messages themselves (proto/bulk_message.h).
using CodecServiceBase = v1::Codec::WithRawCallbackMethod_Encode<
    v1::Codec::WithRawCallbackMethod_Decode<v1::Codec::Service>>;

class CodecService final : public CodecServiceBase {
 public:
  explicit CodecService(ServiceContext* service) : service_(service) {}

  RawBidiReactor* Encode(grpc::CallbackServerContext* call) override;
  RawBidiReactor* Decode(grpc::CallbackServerContext* call) override;

 private:
  ServiceContext* const service_;
};

}  // namespace sketchkv
