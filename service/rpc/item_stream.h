#pragma once

#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/server_callback.h>

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <set>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "kernels/base/mutex.h"
#include "proto/bulk_message.h"
#include "service/engine/payload.h"
#include "service/rpc/answer_queue.h"
#include "service/rpc/inflight.h"
#include "service/rpc/part_answer.h"
#include "service/rpc/payload_slices.h"
#include "service/rpc/service_context.h"
#include "service/rpc/status.h"
#include "service/rpc/write_watch.h"

namespace sketchkv {

// A bidirectional stream of items, each answered by one or more messages in any order. The reactor
// only moves messages: items run on the executor. Reading pauses while many items are under way or
// answers wait, so a peer that does not read is not read from; one that leaves an answer unread for
// max_timeout is cancelled. Deletes itself.
template <typename Request, typename Response>
class ItemStream : public RawBidiReactor, private WriteWatch::Stream {
 public:
  ItemStream(ServiceContext* service, grpc::CallbackServerContext* call)
      : service_(service), call_(call) {
    service_->writes->Add(this);
  }
  ~ItemStream() override { service_->writes->Remove(this); }

  void OnReadDone(bool ok) final {
    absl::Status status;
    if (ok) status = Receive();
    if (!ok || !status.ok()) OnReadsDone();
    Step([&]() SKETCHKV_REQUIRES(mu_) {
      reading_ = false;
      if (!ok || !status.ok()) reads_done_ = true;
      if (!status.ok()) end_status_ = status;
    });
  }
  void OnWriteDone(bool ok) final {
    outgoing_.Clear();
    Step([&]() SKETCHKV_REQUIRES(mu_) {
      writing_ = false;
      if (!ok) broken_ = true;
    });
  }
  void OnCancel() final { cancelled_ = true; }
  void OnDone() final { delete this; }

 protected:
  // One message from the peer, on a gRPC thread; `bulk` is its field 15, in gRPC's slices. An error
  // ends the stream with it.
  [[nodiscard]] virtual absl::Status OnMessage(Request message, Payload bulk) = 0;
  // Nothing more is read: an item that is still incomplete must be answered. On a gRPC thread.
  virtual void OnReadsDone() {}

  // The first read; call once the object is complete.
  void Start() {
    Step([] {});
  }

  // An item begins; it must be answered once. INVALID_ARGUMENT for a request_id of 0 or one that is
  // under way.
  [[nodiscard]] absl::Status BeginItem(uint64_t request_id) {
    if (request_id == 0) return absl::InvalidArgumentError("request_id is 0; it needs another");
    MutexLock lock(&mu_);
    if (!active_.insert(request_id).second) {
      return absl::InvalidArgumentError(
          absl::StrCat("request_id ", request_id, " is of an item still under way"));
    }
    return absl::OkStatus();
  }

  // Ends an item with these messages. Any thread; the stream may be gone when this returns.
  void Answer(uint64_t request_id, std::vector<grpc::ByteBuffer> messages) {
    Step([&]() SKETCHKV_REQUIRES(mu_) {
      active_.erase(request_id);
      if (broken_) return;
      for (grpc::ByteBuffer& message : messages) queue_.Push(std::move(message));
    });
  }
  // The same with one message.
  void Answer(uint64_t request_id, grpc::ByteBuffer message) {
    std::vector<grpc::ByteBuffer> messages;
    messages.push_back(std::move(message));
    Answer(request_id, std::move(messages));
  }
  // The same without bulk.
  void Answer(uint64_t request_id, Response message) {
    Step([&]() SKETCHKV_REQUIRES(mu_) {
      active_.erase(request_id);
      if (!broken_) queue_.Push(std::move(message));
    });
  }
  void AnswerError(uint64_t request_id, const absl::Status& status) {
    Response message;
    message.set_request_id(request_id);
    *message.mutable_status() = ToItemStatus(status);
    Answer(request_id, std::move(message));
  }
  // From now on answers that wait may go in one message: the peer looks for them there.
  void JoinAnswers() {
    MutexLock lock(&mu_);
    queue_.Join();
  }

  // Ends an item with the part that `make` gives to the sink, which is sent while it is being made;
  // `make` returns its checksum. What is not sent yet holds `hold`.
  void AnswerPart(uint64_t request_id, InflightBytes::Hold hold,
                  const std::function<absl::StatusOr<uint64_t>(PartSink*)>& make) {
    PartAnswer<Response> answer(request_id, std::move(hold), [this](grpc::ByteBuffer message) {
      Step([&]() SKETCHKV_REQUIRES(mu_) {
        if (!broken_) queue_.Push(std::move(message));
      });
    });
    const absl::StatusOr<uint64_t> checksum = make(&answer);
    if (!checksum.ok()) return AnswerError(request_id, checksum.status());
    Answer(request_id, answer.Finish(*checksum));
  }

  // Runs `body` on the executor for an item that has begun; a dropped item is answered with why.
  void Submit(uint64_t request_id, TimePoint deadline, std::function<void()> body,
              std::chrono::milliseconds delay = {}) {
    const absl::Status status = service_->executor->Submit(
        {.run = std::move(body),
         .drop = [this, request_id](absl::Status why) { AnswerError(request_id, why); },
         .deadline = deadline,
         .cancelled = [this] { return cancelled(); },
         .delay = delay});
    if (!status.ok()) AnswerError(request_id, status);
  }

  [[nodiscard]] bool cancelled() const { return cancelled_.load(std::memory_order_relaxed); }
  [[nodiscard]] ServiceContext& service() const { return *service_; }
  [[nodiscard]] const grpc::CallbackServerContext& call() const { return *call_; }

 private:
  static constexpr size_t kMaxActive = 64;
  static constexpr size_t kMaxQueued = 64;

  [[nodiscard]] absl::Status Receive() {
    Request message;
    std::vector<grpc::Slice> bulk;
    const bool parsed = SplitMessage(request_, &message, &bulk);
    const size_t bytes = request_.Length();
    request_.Clear();
    if (parsed) return OnMessage(std::move(message), PayloadOf(std::move(bulk)));
    return absl::InvalidArgumentError(
        absl::StrCat("a message of ", bytes, " bytes is no ", message.GetTypeName()));
  }

  // The queue goes too: OnWriteDone(false) follows.
  void CancelIfLate(TimePoint now) final {
    MutexLock lock(&mu_);
    if (writing_ && now >= write_end_) call_->TryCancel();
  }

  // Applies `change` and starts whatever can be started then. Both under one lock: once an item is
  // answered another thread may finish the stream, so this one must have decided by then. What was
  // decided is done outside the lock; its flag keeps the reactor alive until it is.
  template <typename Change>
  void Step(const Change& change) {
    bool read = false, write = false, finish = false;
    grpc::WriteOptions options;
    absl::Status end_status;
    typename AnswerQueue<Response>::Message outgoing;
    {
      MutexLock lock(&mu_);
      change();
      if (broken_) queue_.Clear();
      if (!writing_ && !queue_.empty()) {
        outgoing = queue_.Pop();
        writing_ = write = true;
        // What is small travels with the next: to send answers one by one costs more than they do.
        if (!queue_.empty()) options.set_buffer_hint();
        write_end_ = service_->clock->Now() + service_->max_timeout;
      }
      if (!reading_ && !reads_done_ && active_.size() < kMaxActive && queue_.size() < kMaxQueued) {
        reading_ = read = true;
      }
      if (reads_done_ && !reading_ && !writing_ && queue_.empty() && active_.empty() &&
          !finished_) {
        finished_ = finish = true;
        end_status = end_status_;
      }
    }
    if (write) {
      outgoing_ = std::move(outgoing).Buffer();
      this->StartWrite(&outgoing_, options);
    }
    if (read) this->StartRead(&request_);
    if (finish) this->Finish(ToGrpcStatus(end_status));
  }

  ServiceContext* const service_;
  grpc::CallbackServerContext* const call_;
  std::atomic<bool> cancelled_{false};
  grpc::ByteBuffer request_;   // touched by the read under way only
  grpc::ByteBuffer outgoing_;  // touched by the write under way only

  Mutex mu_;
  std::set<uint64_t> active_ SKETCHKV_GUARDED_BY(mu_);
  AnswerQueue<Response> queue_ SKETCHKV_GUARDED_BY(mu_);
  bool reading_ SKETCHKV_GUARDED_BY(mu_) = false;
  bool writing_ SKETCHKV_GUARDED_BY(mu_) = false;
  TimePoint write_end_ SKETCHKV_GUARDED_BY(mu_);  // when the write under way is late
  bool reads_done_ SKETCHKV_GUARDED_BY(mu_) = false;
  bool broken_ SKETCHKV_GUARDED_BY(mu_) = false;  // a write failed: the peer is gone
  bool finished_ SKETCHKV_GUARDED_BY(mu_) = false;
  absl::Status end_status_ SKETCHKV_GUARDED_BY(mu_);
};

}  // namespace sketchkv
