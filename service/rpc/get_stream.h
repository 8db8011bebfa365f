#pragma once

#include "service/rpc/item_stream.h"
#include "sketchkv/v1/cache.pb.h"

namespace sketchkv {

// Cache.Get: one message in is one item, its part comes back in chunks.
class GetStream final : public ItemStream<v1::GetRequest, v1::GetResponse> {
 public:
  GetStream(ServiceContext* service, grpc::CallbackServerContext* call);

 private:
  absl::Status OnMessage(v1::GetRequest message, Payload) override;
  absl::Status Begin(const v1::GetRequest& message);
  // The answer goes to the caller's segment.
  absl::Status BeginShared(const v1::GetRequest& message, Engine::GetRequest request);
  // It goes to the caller's memory on the card.
  absl::Status BeginOnGpu(const v1::GetRequest& message, Engine::GetRequest request);
};

}  // namespace sketchkv
