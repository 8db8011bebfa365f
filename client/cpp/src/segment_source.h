#pragma once

#include <cstddef>
#include <memory>
#include <span>

#include "client/cpp/src/core.h"
#include "client/cpp/src/shared_segment.h"
#include "kernels/base/mutex.h"

namespace sketchkv::client {

// The segment that is shared with the server now, opened when it is first wanted. Thread-safe.
class SegmentSource {
 public:
  explicit SegmentSource(ClientCore* core) : core_(core) {}

  // Null where there is none: the server shares none or is elsewhere, which is asked again after a
  // while; or another thread is just opening it. Never waits for another thread.
  [[nodiscard]] std::shared_ptr<SharedSegment> Get(TimePoint deadline);
  // The same, but waits for another thread that is opening it.
  [[nodiscard]] std::shared_ptr<SharedSegment> Await(TimePoint deadline);
  // The segment if these bytes lie in it; opens none.
  [[nodiscard]] std::shared_ptr<SharedSegment> Holding(std::span<const std::byte> bytes);
  // The server may still write to `segment`: neither it nor memory of it is handed out again.
  void Retire(SharedSegment* segment);

 private:
  [[nodiscard]] std::shared_ptr<SharedSegment> Open(TimePoint deadline);

  ClientCore* const core_;
  Mutex mu_;
  CondVar opened_;  // opening_ is false again
  std::shared_ptr<SharedSegment> segment_ SKETCHKV_GUARDED_BY(mu_);
  TimePoint retry_at_ SKETCHKV_GUARDED_BY(mu_);  // while there is none
  bool opening_ SKETCHKV_GUARDED_BY(mu_) = false;
};

}  // namespace sketchkv::client
