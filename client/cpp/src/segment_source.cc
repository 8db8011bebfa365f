#include "client/cpp/src/segment_source.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "absl/status/statusor.h"

namespace sketchkv::client {
namespace {

// A server that shares none now is asked again after this.
constexpr std::chrono::seconds kRetryAfter{10};
// To ask the server where its socket is.
constexpr std::chrono::seconds kAskTime{1};

}  // namespace

std::shared_ptr<SharedSegment> SegmentSource::Get(TimePoint deadline) {
  if (core_->options().shared_memory_bytes == 0) return nullptr;
  const TimePoint now = std::chrono::steady_clock::now();
  {
    MutexLock lock(&mu_);
    if (segment_ != nullptr && segment_->alive()) return segment_;
    segment_ = nullptr;
    if (opening_ || now < retry_at_) return nullptr;
    opening_ = true;
  }
  std::shared_ptr<SharedSegment> opened = Open(deadline);
  MutexLock lock(&mu_);
  opening_ = false;
  if (opened == nullptr) retry_at_ = now + kRetryAfter;
  segment_ = std::move(opened);
  opened_.NotifyAll();
  return segment_;
}

std::shared_ptr<SharedSegment> SegmentSource::Await(TimePoint deadline) {
  {
    MutexLock lock(&mu_);
    while (opening_) {
      if (!opened_.WaitUntil(&mu_, deadline)) return nullptr;
    }
  }
  return Get(deadline);
}

std::shared_ptr<SharedSegment> SegmentSource::Holding(std::span<const std::byte> bytes) {
  MutexLock lock(&mu_);
  const bool held = segment_ != nullptr && segment_->Find(bytes).has_value() && segment_->alive();
  return held ? segment_ : nullptr;
}

void SegmentSource::Retire(SharedSegment* segment) {
  segment->Retire();                       // for those who have it already
  std::shared_ptr<SharedSegment> retired;  // goes after the lock
  MutexLock lock(&mu_);
  if (segment_.get() == segment) retired = std::move(segment_);
}

std::shared_ptr<SharedSegment> SegmentSource::Open(TimePoint deadline) {
  v1::GetStatsResponse stats;
  Call call(core_, std::min(deadline, std::chrono::steady_clock::now() + kAskTime));
  if (!core_->cache().GetStats(call.context(), {}, &stats).ok()) return nullptr;
  if (stats.shm_socket().empty()) return nullptr;
  const std::string& own = core_->options().shm_socket;
  auto segment =
      SharedSegment::Open(own.empty() ? stats.shm_socket() : own,
                          core_->options().shared_memory_bytes, stats.shm_server(), deadline);
  return segment.ok() ? *std::move(segment) : nullptr;
}

}  // namespace sketchkv::client
