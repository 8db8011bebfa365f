#pragma once

#include <memory>

#include "service/rpc/upload_stream.h"
#include "sketchkv/v1/cache.pb.h"

namespace sketchkv {

// Cache.Put: parts in, one acknowledgement each out.
class PutStream final : public UploadStream<v1::PutRequest, v1::PutResponse> {
 public:
  PutStream(ServiceContext* service, grpc::CallbackServerContext* call);

 private:
  struct Item;
  bool IsFirst(const v1::PutRequest& message) const override { return message.has_header(); }
  absl::StatusOr<std::shared_ptr<Upload>> Open(const v1::PutRequest& first) override;
  void Run(const std::shared_ptr<Item>& item);
};

}  // namespace sketchkv
