#pragma once

#include <grpcpp/completion_queue.h>
#include <grpcpp/support/async_stream.h>

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <thread>

#include "client/cpp/src/core.h"
#include "client/cpp/src/status.h"
#include "kernels/base/mutex.h"
#include "sketchkv/v1/attention.grpc.pb.h"

namespace sketchkv::client {

// One AttendStream RPC. Any number of threads call Ask; requests go out one after another, answers
// come in any order. One thread of its own waits for gRPC: the callback API's threads fall asleep
// for up to 100 ms between calls that are seconds apart, as those of a decode loop may be.
class AttendStream final {
 public:
  // Opens the RPC; it ends by itself at `deadline`. The core outlives the object.
  AttendStream(ClientCore* core, TimePoint deadline);
  // Cancels what is under way.
  ~AttendStream();
  AttendStream(const AttendStream&) = delete;
  AttendStream& operator=(const AttendStream&) = delete;

  // Sends `request` under an id of its own and waits for the answer, which has a status of its own.
  // DEADLINE_EXCEEDED at `deadline`, whatever the server does; when the stream ends, its status.
  [[nodiscard]] Outcome Ask(v1::AttentionRequest request, TimePoint deadline,
                            v1::AttendResponse* response);

  // No more requests: those under way are still answered, then the RPC ends.
  void Retire();
  void Cancel();
  // True once no request can be sent any more.
  [[nodiscard]] bool closed() const;
  [[nodiscard]] bool ended() const;

 private:
  // On the stack of the thread that waits in Ask.
  struct Waiter {
    bool done = false;
    Outcome outcome;  // of the stream
    v1::AttendResponse response;
  };
  enum Event : intptr_t { kStarted, kWritten, kRead, kFinished };
  static void* Tag(Event event) { return reinterpret_cast<void*>(event); }

  void Work();
  void OnRead(bool ok);
  void OnFinished();
  void WriteNext() SKETCHKV_REQUIRES(mu_);

  Call call_;
  grpc::CompletionQueue events_;
  std::unique_ptr<grpc::ClientAsyncReaderWriter<v1::AttentionRequest, v1::AttendResponse>> stream_;
  // The thread's own.
  v1::AttendResponse response_;
  grpc::Status status_;

  mutable Mutex mu_;
  CondVar answered_;  // or ended
  uint64_t next_id_ SKETCHKV_GUARDED_BY(mu_) = 1;
  bool writing_ SKETCHKV_GUARDED_BY(mu_) = true;  // or starting
  bool broken_ SKETCHKV_GUARDED_BY(mu_) = false;  // a read failed
  bool retired_ SKETCHKV_GUARDED_BY(mu_) = false;
  bool half_closed_ SKETCHKV_GUARDED_BY(mu_) = false;
  bool ended_ SKETCHKV_GUARDED_BY(mu_) = false;
  std::deque<v1::AttentionRequest> queue_ SKETCHKV_GUARDED_BY(mu_);
  std::map<uint64_t, Waiter*> waiters_ SKETCHKV_GUARDED_BY(mu_);

  std::thread thread_;
};

}  // namespace sketchkv::client
