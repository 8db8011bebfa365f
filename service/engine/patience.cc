#include "service/engine/patience.h"

#include <algorithm>
#include <chrono>

namespace sketchkv {
namespace {

// Nobody signals that a caller has gone.
constexpr std::chrono::milliseconds kLookInterval{10};

}  // namespace

absl::Status Patience::Check() const {
  if (cancelled && cancelled()) return absl::CancelledError("cancelled");
  if (deadline != TimePoint::max() && std::chrono::steady_clock::now() >= deadline) {
    return absl::DeadlineExceededError("the deadline passed while the request ran");
  }
  return absl::OkStatus();
}

void Patience::Wait(CondVar* changed, Mutex* mu) const {
  TimePoint until = deadline;
  if (cancelled) until = std::min(until, std::chrono::steady_clock::now() + kLookInterval);
  if (until == TimePoint::max()) return changed->Wait(mu);
  (void)changed->WaitUntil(mu, until);
}

}  // namespace sketchkv
