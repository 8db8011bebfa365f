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
  // Of a payload on the card, as far as it can be checked before the item runs.
  absl::Status CheckGpuMemory(const v1::PutHeader& header, uint64_t payload_bytes) const;
  // Why an item with this deadline must store nothing (CANCELLED, DEADLINE_EXCEEDED), or OK.
  absl::Status StillWanted(TimePoint deadline) const;
  absl::StatusOr<Engine::PutResult> Put(Item* item);
  void Run(const std::shared_ptr<Item>& item);
};

}  // namespace sketchkv
