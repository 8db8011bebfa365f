#pragma once

#include <set>

#include "kernels/base/clock.h"
#include "kernels/base/mutex.h"

namespace sketchkv {

// Ends streams whose peer does not read: an answer that waits to be written holds memory, or a pin
// on a stored block, and must not do so for ever. Thread-safe; outlives the streams it watches.
class WriteWatch {
 public:
  class Stream {
   public:
    virtual ~Stream() = default;
    // Cancels the stream if what it writes is not gone by `now`. Any thread.
    virtual void CancelIfLate(TimePoint now) = 0;
  };

  void Add(Stream* stream) {
    MutexLock lock(&mu_);
    streams_.insert(stream);
  }
  // Waits for a Sweep that is looking at it.
  void Remove(Stream* stream) {
    MutexLock lock(&mu_);
    streams_.erase(stream);
  }
  // Looks at all streams; called every second or so.
  void Sweep(TimePoint now) {
    MutexLock lock(&mu_);
    for (Stream* stream : streams_) stream->CancelIfLate(now);
  }

 private:
  Mutex mu_;
  std::set<Stream*> streams_ SKETCHKV_GUARDED_BY(mu_);
};

}  // namespace sketchkv
