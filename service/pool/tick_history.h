#pragma once

#include <cstdint>
#include <deque>

#include "kernels/base/clock.h"

namespace sketchkv {

// Which tick is how old, so that "not used for so long" needs no time in every block. A sample
// every sixteenth of `age` will do, so what it calls old may be older than that. Not thread-safe.
class TickHistory {
 public:
  explicit TickHistory(TimePoint::duration age) : age_(age) {}

  // `tick` was the last one at `now`. Called now and then, with times that do not go back.
  void Note(TimePoint now, uint64_t tick) {
    if (samples_.empty() || now - samples_.back().time >= age_ / 16)
      samples_.push_back({now, tick});
    while (samples_.size() > 1 && now - samples_[1].time >= age_) samples_.pop_front();
  }

  // All ticks up to this one are of `age` or more before `now`; 0: none is known to be.
  [[nodiscard]] uint64_t NewestOld(TimePoint now) const {
    const bool old = !samples_.empty() && now - samples_.front().time >= age_;
    return old ? samples_.front().tick : 0;
  }

 private:
  struct Sample {
    TimePoint time;
    uint64_t tick = 0;
  };

  const TimePoint::duration age_;
  std::deque<Sample> samples_;
};

}  // namespace sketchkv
