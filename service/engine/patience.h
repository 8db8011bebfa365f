#pragma once

#include <functional>

#include "absl/status/status.h"
#include "kernels/base/clock.h"
#include "kernels/base/mutex.h"

namespace sketchkv {

// For how long a caller waits for what it asked for.
struct Patience {
  TimePoint deadline = TimePoint::max();
  std::function<bool()> cancelled;  // may be empty

  // Why it waits no longer (CANCELLED, DEADLINE_EXCEEDED); OK while it does.
  [[nodiscard]] absl::Status Check() const;
  // Waits for `changed`, or for a while: then it is time for Check.
  void Wait(CondVar* changed, Mutex* mu) const SKETCHKV_REQUIRES(mu);
};

}  // namespace sketchkv
