#pragma once

#include <atomic>

#include "kernels/base/clock.h"

namespace sketchkv {

// A clock that stands still until the test moves it. Thread-safe.
class FakeClock final : public Clock {
 public:
  [[nodiscard]] TimePoint Now() const override {
    return TimePoint(std::chrono::nanoseconds(now_ns_.load()));
  }
  void Advance(std::chrono::nanoseconds by) { now_ns_ += by.count(); }

 private:
  std::atomic<int64_t> now_ns_{1'000'000'000};
};

}  // namespace sketchkv
