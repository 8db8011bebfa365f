#pragma once

#include <grpcpp/support/server_callback.h>

#include <cstdint>
#include <deque>
#include <memory>
#include <optional>

#include "kernels/base/mutex.h"
#include "service/engine/model_registry.h"
#include "service/rpc/service_context.h"
#include "sketchkv/v1/cache.pb.h"

namespace sketchkv {

// Cache.Watch: the event log from a sequence on. Woken by the log, it reads on the executor, never on
// the thread that appended. Deletes itself.
class WatchStream final : public grpc::ServerWriteReactor<v1::WatchResponse> {
 public:
  WatchStream(ServiceContext* service, const v1::WatchRequest& request);

  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;

 private:
  void Wake();
  [[nodiscard]] bool MayPump() SKETCHKV_REQUIRES(mu_);
  void SchedulePump();
  void Pump();  // on the executor
  // As ItemStream::Step.
  template <typename Change>
  void Step(const Change& change);
  [[nodiscard]] std::optional<v1::WatchResponse> ToMessage(const BlockEvent& event) const;

  ServiceContext* const service_;
  std::shared_ptr<const Model> model_;  // null: all
  uint64_t subscription_ = 0;  // 0: none

  Mutex mu_;
  uint64_t next_ SKETCHKV_GUARDED_BY(mu_) = 1;
  std::deque<v1::WatchResponse> queue_ SKETCHKV_GUARDED_BY(mu_);
  v1::WatchResponse outgoing_;  // touched by the write under way only
  bool wanted_ SKETCHKV_GUARDED_BY(mu_) = false;   // the log has grown
  bool pumping_ SKETCHKV_GUARDED_BY(mu_) = false;  // scheduled or running
  bool writing_ SKETCHKV_GUARDED_BY(mu_) = false;
  bool over_ SKETCHKV_GUARDED_BY(mu_) = false;  // cancelled, broken or refused
  bool finished_ SKETCHKV_GUARDED_BY(mu_) = false;
  absl::Status end_status_ SKETCHKV_GUARDED_BY(mu_);
};

}  // namespace sketchkv
