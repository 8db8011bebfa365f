#pragma once

#include <chrono>

namespace sketchkv {

using TimePoint = std::chrono::steady_clock::time_point;

// The one source of time below main, so that tests decide what time it is. Thread-safe.
class Clock {
 public:
  virtual ~Clock() = default;
  [[nodiscard]] virtual TimePoint Now() const = 0;
};

class SteadyClock final : public Clock {
 public:
  [[nodiscard]] TimePoint Now() const override { return std::chrono::steady_clock::now(); }
};

}  // namespace sketchkv
