#include "client/cpp/src/attend_session.h"

#include <chrono>
#include <utility>
#include <vector>

#include "client/cpp/src/attend.h"
#include "client/cpp/src/attend_payload.h"
#include "client/cpp/src/attend_stream.h"
#include "kernels/base/mutex.h"
#include "kernels/base/status_macros.h"

namespace sketchkv::client {
namespace {

// A stream is replaced at this age, so that no RPC is without a deadline and connections that a
// balancer moved are followed.
constexpr std::chrono::minutes kStreamAge{10};

class Session final : public Client::AttendSession {
 public:
  Session(std::shared_ptr<ClientCore> core, std::shared_ptr<ModelCache> models,
          std::shared_ptr<SegmentSource> segments)
      : core_(std::move(core)), models_(std::move(models)), segments_(std::move(segments)) {}

  absl::StatusOr<std::vector<AttentionOutput>> Attend(const AttentionCall& call) override {
    const TimePoint deadline = core_->DeadlineFromNow();
    SKETCHKV_ASSIGN_OR_RETURN(const PreparedAttention prepared,
                              PrepareAttention(models_.get(), call, deadline));
    for (uint32_t tries = 0;; ++tries) {
      std::vector<AttentionOutput> outputs;
      const Outcome outcome = Try(prepared, deadline, &outputs);
      models_->DropAfter(outcome.status, call.model);
      if (outcome.status.ok()) return outputs;
      if (!IsRetryable(outcome) || tries >= core_->options().max_retries) return outcome.status;
      const absl::Status paused = core_->Pause(tries, outcome.retry_after_ms, deadline);
      if (absl::IsCancelled(paused)) return paused;
      if (!paused.ok()) return outcome.status;
    }
  }

 private:
  Outcome Try(const PreparedAttention& call, TimePoint deadline,
              std::vector<AttentionOutput>* outputs) {
    AttendPayload payload(&call, segments_.get(), deadline);
    v1::AttendResponse response;
    Outcome ended = Stream()->Ask(payload.Request(), deadline, &response);
    return ended.status.ok() ? payload.Take(response, outputs) : ended;
  }

  std::shared_ptr<AttendStream> Stream() {
    MutexLock lock(&mu_);
    const TimePoint now = std::chrono::steady_clock::now();
    if (stream_ != nullptr && !stream_->closed() && now < retire_at_) return stream_;
    std::erase_if(old_, [](const auto& stream) { return stream->ended(); });
    if (stream_ != nullptr) {
      stream_->Retire();
      old_.push_back(stream_);
    }
    retire_at_ = now + kStreamAge;
    stream_ = std::make_shared<AttendStream>(core_.get(), retire_at_ + core_->options().timeout);
    return stream_;
  }

  const std::shared_ptr<ClientCore> core_;
  const std::shared_ptr<ModelCache> models_;
  const std::shared_ptr<SegmentSource> segments_;
  Mutex mu_;
  std::shared_ptr<AttendStream> stream_ SKETCHKV_GUARDED_BY(mu_);
  std::vector<std::shared_ptr<AttendStream>> old_ SKETCHKV_GUARDED_BY(mu_);  // not all ended yet
  TimePoint retire_at_ SKETCHKV_GUARDED_BY(mu_);
};

}  // namespace

std::unique_ptr<Client::AttendSession> MakeAttendSession(std::shared_ptr<ClientCore> core,
                                                         std::shared_ptr<ModelCache> models,
                                                         std::shared_ptr<SegmentSource> segments) {
  return std::make_unique<Session>(std::move(core), std::move(models), std::move(segments));
}

}  // namespace sketchkv::client
