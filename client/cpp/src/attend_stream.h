#pragma once

#include <grpcpp/support/client_callback.h>

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <string>

#include "client/cpp/src/core.h"
#include "client/cpp/src/status.h"
#include "kernels/base/mutex.h"
#include "sketchkv/v1/attention.grpc.pb.h"

namespace sketchkv::client {

// One AttendStream RPC. Any number of threads call Ask; requests go out one after another, answers
// come in any order. gRPC's callbacks only queue and wake. Keeps itself alive until the RPC ended;
// the core must live until then (Join), for gRPC's threads may not be the ones to destroy a
// channel.
class AttendStream final
    : public grpc::ClientBidiReactor<v1::AttentionRequest, v1::AttendResponse> {
 public:
  // Opens the RPC; it ends by itself at `deadline`.
  [[nodiscard]] static std::shared_ptr<AttendStream> Open(ClientCore* core, TimePoint deadline);

  // Sends `request` under an id of its own and waits for the answer's payload.
  // DEADLINE_EXCEEDED at `deadline`, whatever the server does; when the stream ends, its status.
  [[nodiscard]] Outcome Ask(v1::AttentionRequest request, TimePoint deadline, std::string* payload);

  // No more requests: those under way are still answered, then the RPC ends.
  void Retire();
  void Cancel();
  // Waits until the RPC has ended and nothing of it uses the core any more.
  void Join();
  // True once no request can be sent any more.
  [[nodiscard]] bool closed() const;
  [[nodiscard]] bool ended() const;

  void OnReadDone(bool ok) override;
  void OnWriteDone(bool ok) override;
  void OnDone(const grpc::Status& status) override;

 private:
  // On the stack of the thread that waits in Ask.
  struct Waiter {
    bool done = false;
    Outcome outcome;
    std::string payload;
  };

  AttendStream(ClientCore* core, TimePoint deadline);
  void WriteNext() SKETCHKV_REQUIRES(mu_);

  ClientCore* const core_;
  std::unique_ptr<Call> call_;          // until OnDone
  std::shared_ptr<AttendStream> self_;  // until OnDone
  v1::AttendResponse response_;         // the reading callback's

  mutable Mutex mu_;
  CondVar answered_;  // or ended
  uint64_t next_id_ SKETCHKV_GUARDED_BY(mu_) = 1;
  bool writing_ SKETCHKV_GUARDED_BY(mu_) = false;
  bool broken_ SKETCHKV_GUARDED_BY(mu_) = false;  // a read or write failed
  bool retired_ SKETCHKV_GUARDED_BY(mu_) = false;
  bool half_closed_ SKETCHKV_GUARDED_BY(mu_) = false;
  bool ended_ SKETCHKV_GUARDED_BY(mu_) = false;
  std::deque<v1::AttentionRequest> queue_ SKETCHKV_GUARDED_BY(mu_);
  v1::AttentionRequest sending_;  // between StartWrite and OnWriteDone
  std::map<uint64_t, Waiter*> waiters_ SKETCHKV_GUARDED_BY(mu_);
};

}  // namespace sketchkv::client
