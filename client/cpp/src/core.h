#pragma once

#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <set>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "client/cpp/src/status.h"
#include "kernels/base/clock.h"
#include "kernels/base/mutex.h"
#include "sketchkv/client.h"
#include "sketchkv/v1/attention.grpc.pb.h"
#include "sketchkv/v1/cache.grpc.pb.h"
#include "sketchkv/v1/models.grpc.pb.h"

namespace sketchkv::client {

// Milliseconds from now to `deadline`, at least 1, for the timeout_ms fields.
[[nodiscard]] uint32_t RemainingMs(TimePoint deadline);

// The channel, its stubs and every call under way. Thread-safe.
class ClientCore {
 public:
  explicit ClientCore(ClientOptions options);

  [[nodiscard]] const ClientOptions& options() const { return options_; }
  [[nodiscard]] const std::shared_ptr<grpc::Channel>& channel() const { return channel_; }
  [[nodiscard]] v1::Models::Stub& models() const { return *models_; }
  [[nodiscard]] v1::Cache::Stub& cache() const { return *cache_; }
  [[nodiscard]] v1::Attention::Stub& attention() const { return *attention_; }
  [[nodiscard]] TimePoint DeadlineFromNow() const;

  // Cancels the calls under way, wakes the pauses and cancels every later call at its start.
  void Close();
  [[nodiscard]] bool closed() const;

  // Waits before try number `attempt` + 1: the pause of the options, doubled `attempt` times and
  // spread by a quarter, or what the server asks for if that is longer. DEADLINE_EXCEEDED at once
  // when the pause would outlast the deadline; CANCELLED when the client is closed.
  [[nodiscard]] absl::Status Pause(uint32_t attempt, uint32_t retry_after_ms, TimePoint deadline);

 private:
  friend class Call;

  const ClientOptions options_;
  const std::shared_ptr<grpc::Channel> channel_;
  const std::unique_ptr<v1::Models::Stub> models_;
  const std::unique_ptr<v1::Cache::Stub> cache_;
  const std::unique_ptr<v1::Attention::Stub> attention_;

  mutable Mutex mu_;
  CondVar closed_changed_;
  bool closed_ SKETCHKV_GUARDED_BY(mu_) = false;
  std::set<grpc::ClientContext*> calls_ SKETCHKV_GUARDED_BY(mu_);
  uint64_t pauses_ SKETCHKV_GUARDED_BY(mu_) = 0;
};

// One RPC: its context, with a deadline, known to the core as long as this object lives.
class Call {
 public:
  Call(ClientCore* core, TimePoint deadline);
  // Without a deadline: Watch alone.
  explicit Call(ClientCore* core);
  ~Call();
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;

  [[nodiscard]] grpc::ClientContext* context() { return &context_; }

 private:
  ClientCore* const core_;
  grpc::ClientContext context_;
};

// Runs `attempt` until it is OK, fails in a way that does not pass, or retries or time are spent.
// The status is that of the last attempt.
[[nodiscard]] absl::Status WithRetries(ClientCore* core, TimePoint deadline,
                                       const std::function<Outcome(grpc::ClientContext*)>& attempt);

}  // namespace sketchkv::client
