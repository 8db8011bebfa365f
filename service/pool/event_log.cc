#include "service/pool/event_log.h"

#include <algorithm>
#include <memory>
#include <utility>

namespace sketchkv {

EventLog::EventLog(size_t capacity) : capacity_(capacity) {}

void EventLog::Append(BlockEventType type, const BlockKey& key,
                      const std::optional<BlockHash>& parent) {
  std::vector<std::shared_ptr<Subscriber>> to_wake;
  {
    MutexLock lock(&mu_);
    ring_.push_back(BlockEvent{next_sequence_++, type, key, parent});
    if (ring_.size() > capacity_) ring_.pop_front();
    if (subscribers_.empty()) return;
    to_wake = subscribers_;
    for (const auto& subscriber : to_wake) ++subscriber->running;
  }
  for (const auto& subscriber : to_wake) subscriber->wake();
  MutexLock lock(&mu_);
  for (const auto& subscriber : to_wake) --subscriber->running;
  woken_.NotifyAll();
}

EventLog::Batch EventLog::Read(uint64_t from, size_t limit) const {
  from = std::max<uint64_t>(from, 1);
  MutexLock lock(&mu_);
  const uint64_t oldest = next_sequence_ - ring_.size();
  Batch batch;
  if (from < oldest) batch.first_missing = from;
  const uint64_t begin = std::min(std::max(from, oldest), next_sequence_);
  const uint64_t count = std::min<uint64_t>(limit, next_sequence_ - begin);
  const auto first = ring_.begin() + static_cast<ptrdiff_t>(begin - oldest);
  batch.events.assign(first, first + static_cast<ptrdiff_t>(count));
  batch.next = begin + count;
  return batch;
}

uint64_t EventLog::next_sequence() const {
  MutexLock lock(&mu_);
  return next_sequence_;
}

uint64_t EventLog::Subscribe(std::function<void()> wake) {
  auto subscriber = std::make_shared<Subscriber>();
  subscriber->wake = std::move(wake);
  MutexLock lock(&mu_);
  subscriber->id = next_subscriber_++;
  subscribers_.push_back(subscriber);
  return subscriber->id;
}

void EventLog::Unsubscribe(uint64_t id) {
  MutexLock lock(&mu_);
  const auto it = std::find_if(subscribers_.begin(), subscribers_.end(),
                               [id](const auto& subscriber) { return subscriber->id == id; });
  if (it == subscribers_.end()) return;
  const std::shared_ptr<Subscriber> subscriber = *it;
  subscribers_.erase(it);
  while (subscriber->running > 0) woken_.Wait(&mu_);
}

}  // namespace sketchkv
