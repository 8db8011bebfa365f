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
  MutexLock lock(&mu_);
  if (segment_ != nullptr && segment_->alive()) return segment_;
  segment_ = nullptr;
  const TimePoint now = std::chrono::steady_clock::now();
  if (now < retry_at_) return nullptr;
  // Under the lock: whoever comes meanwhile wants the same segment.
  segment_ = Open(std::min(deadline, now + kAskTime));
  if (segment_ == nullptr) retry_at_ = now + kRetryAfter;
  return segment_;
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
  Call call(core_, deadline);
  if (!core_->cache().GetStats(call.context(), {}, &stats).ok()) return nullptr;
  if (stats.shm_socket().empty()) return nullptr;
  const std::string& own = core_->options().shm_socket;
  auto segment = SharedSegment::Open(own.empty() ? stats.shm_socket() : own,
                                     core_->options().shared_memory_bytes, stats.shm_server());
  return segment.ok() ? *std::move(segment) : nullptr;
}

}  // namespace sketchkv::client
