#pragma once

#include <memory>
#include <vector>

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
  absl::Status CheckWhole(const v1::PutRequest& request) const override;
  void OnMessageTaken() override { StartTask(); }
  // Of a payload on the card, as far as it can be checked before the item runs.
  absl::Status CheckGpuMemory(const v1::PutHeader& header, uint64_t payload_bytes) const;
  // Why an item with this deadline must store nothing (CANCELLED, DEADLINE_EXCEEDED), or OK.
  absl::Status StillWanted(TimePoint deadline) const;
  // Whatever its payload needs before it can be put.
  absl::Status Prepare(Item* item);
  void Run(const std::shared_ptr<Item>& item);
  void Finish(const std::shared_ptr<Item>& item, const absl::StatusOr<Engine::PutResult>& result);

  // Items whose payload lies on the card come faster than threads are woken for them: a few tasks
  // take what has come meanwhile, together.
  struct Ready;
  using Items = std::vector<std::shared_ptr<Item>>;
  void AddReady(const std::shared_ptr<Item>& item);
  void StartTask();  // one more, if there is something for it
  void RunReady(const std::shared_ptr<Ready>& ready, Items items);
  std::vector<absl::StatusOr<Engine::PutResult>> PutTogether(const Items& items);

  const std::shared_ptr<Ready> ready_;
};

}  // namespace sketchkv
