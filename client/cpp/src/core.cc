#include "client/cpp/src/core.h"

#include <grpc/support/time.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>
#include <grpcpp/support/channel_arguments.h>

#include <algorithm>
#include <utility>

namespace sketchkv::client {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

std::shared_ptr<grpc::Channel> MakeChannel(const ClientOptions& options) {
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, 30'000);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 10'000);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  arguments.SetInt(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  // This client repeats calls itself, item by item; gRPC's buffer of 256 KiB would only copy.
  arguments.SetInt(GRPC_ARG_ENABLE_RETRIES, 0);
  // gRPC fails calls at once while it waits to reconnect, by default for a second: longer than all
  // pauses between our tries together.
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 5'000);
  // Two clients in one process share no connection, so that none waits for the other's bytes.
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  return grpc::CreateCustomChannel(options.target, grpc::InsecureChannelCredentials(), arguments);
}

gpr_timespec GrpcDeadline(TimePoint deadline) {
  const auto left =
      std::chrono::duration_cast<std::chrono::microseconds>(deadline - steady_clock::now());
  return gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC),
                      gpr_time_from_micros(std::max<int64_t>(left.count(), 0), GPR_TIMESPAN));
}

}  // namespace

uint32_t RemainingMs(TimePoint deadline) {
  const auto left = std::chrono::duration_cast<milliseconds>(deadline - steady_clock::now());
  return static_cast<uint32_t>(std::clamp<int64_t>(left.count(), 1, UINT32_MAX));
}

ClientCore::ClientCore(ClientOptions options)
    : options_(std::move(options)),
      channel_(MakeChannel(options_)),
      models_(v1::Models::NewStub(channel_)),
      cache_(v1::Cache::NewStub(channel_)),
      attention_(v1::Attention::NewStub(channel_)) {}

TimePoint ClientCore::DeadlineFromNow() const { return steady_clock::now() + options_.timeout; }

void ClientCore::Close() {
  MutexLock lock(&mu_);
  closed_ = true;
  for (grpc::ClientContext* context : calls_) context->TryCancel();
  closed_changed_.NotifyAll();
}

bool ClientCore::closed() const {
  MutexLock lock(&mu_);
  return closed_;
}

absl::Status ClientCore::Pause(uint32_t attempt, uint32_t retry_after_ms, TimePoint deadline) {
  MutexLock lock(&mu_);
  // Clients that failed together should not come back together: 3/4 to 5/4 of the pause, in steps
  // that differ from pause to pause and from process to process.
  const uint64_t noise = (++pauses_ * 0x9E3779B97F4A7C15u ^ reinterpret_cast<uintptr_t>(this)) >> 7;
  const int64_t base_us = std::chrono::microseconds(options_.retry_pause).count()
                          << std::min<uint32_t>(attempt, 16);
  const std::chrono::microseconds own(base_us * 3 / 4 + base_us / 2 * int64_t(noise % 256) / 256);
  const TimePoint until =
      steady_clock::now() + std::max<std::chrono::microseconds>(own, milliseconds(retry_after_ms));
  if (until >= deadline) return absl::DeadlineExceededError("no time is left for another try");
  while (!closed_ && steady_clock::now() < until) closed_changed_.WaitUntil(&mu_, until);
  return closed_ ? absl::CancelledError("the client is closed") : absl::OkStatus();
}

Call::Call(ClientCore* core, TimePoint deadline) : Call(core) {
  context_.set_deadline(GrpcDeadline(deadline));
}

Call::Call(ClientCore* core) : core_(core) {
  MutexLock lock(&core_->mu_);
  core_->calls_.insert(&context_);
  // Before the call begins this makes it end as CANCELLED as soon as it does.
  if (core_->closed_) context_.TryCancel();
}

Call::~Call() {
  MutexLock lock(&core_->mu_);
  core_->calls_.erase(&context_);
}

absl::Status WithRetries(ClientCore* core, TimePoint deadline,
                         const std::function<Outcome(grpc::ClientContext*)>& attempt) {
  for (uint32_t tries = 0;; ++tries) {
    Outcome outcome;
    {
      Call call(core, deadline);
      outcome = attempt(call.context());
    }
    if (!IsRetryable(outcome) || tries >= core->options().max_retries) return outcome.status;
    const absl::Status paused = core->Pause(tries, outcome.retry_after_ms, deadline);
    if (absl::IsCancelled(paused)) return paused;
    if (!paused.ok()) return outcome.status;
  }
}

}  // namespace sketchkv::client
