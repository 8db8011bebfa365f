#pragma once

#include <grpcpp/support/server_callback.h>

#include <atomic>
#include <deque>
#include <functional>
#include <utility>

#include "service/rpc/inflight.h"
#include "service/rpc/service_context.h"
#include "service/rpc/status.h"
#include "service/rpc/write_watch.h"

namespace sketchkv {

// A server stream whose messages are all made by one task on the executor, then written, each in
// its time: what an unread answer holds is given back. Refusals carry gRPC's retry hint. Deletes
// itself.
template <typename Response>
class ComputedStream final : public grpc::ServerWriteReactor<Response>, private WriteWatch::Stream {
 public:
  struct Result {
    std::deque<Response> messages;
    absl::Status status;
    InflightBytes::Hold hold;
  };

  ComputedStream(const ServiceContext& service, grpc::CallbackServerContext* call,
                 uint32_t timeout_ms, std::function<Result()> compute)
      : service_(service), call_(call) {
    service_.writes->Add(this);
    const auto fail = [this](absl::Status why) {
      Begin({.messages = {}, .status = std::move(why), .hold = nullptr});
    };
    const absl::Status submitted =
        service.executor->Submit({.run = [this, compute = std::move(compute)] { Begin(compute()); },
                                  .drop = fail,
                                  .deadline = service.Deadline(timeout_ms, *call),
                                  .cancelled = [this] { return cancelled_.load(); }});
    if (!submitted.ok()) fail(submitted);
  }

  ~ComputedStream() override { service_.writes->Remove(this); }

  void OnWriteDone(bool ok) override {
    {
      MutexLock lock(&mu_);
      write_end_ = TimePoint::max();
    }
    if (!ok) result_.messages.clear();
    WriteNext();
  }
  void OnCancel() override { cancelled_ = true; }
  void OnDone() override { delete this; }

 private:
  void Begin(Result result) {
    result_ = std::move(result);
    WriteNext();
  }
  // One write at a time, and nothing else touches result_ once it is there.
  void WriteNext() {
    if (result_.messages.empty()) {
      AddRetryHint(result_.status, call_);
      return this->Finish(ToGrpcStatus(result_.status));
    }
    outgoing_ = std::move(result_.messages.front());
    result_.messages.pop_front();
    {
      MutexLock lock(&mu_);
      write_end_ = service_.clock->Now() + service_.max_timeout;
    }
    this->StartWrite(&outgoing_);
  }

  void CancelIfLate(TimePoint now) override {
    MutexLock lock(&mu_);
    if (now >= write_end_) call_->TryCancel();
  }

  const ServiceContext& service_;
  grpc::CallbackServerContext* const call_;
  Mutex mu_;
  TimePoint write_end_ SKETCHKV_GUARDED_BY(mu_) = TimePoint::max();
  std::atomic<bool> cancelled_{false};
  Result result_;
  Response outgoing_;
};

}  // namespace sketchkv
