#include "service/gpu/ipc_cache.h"

#include <utility>
#include <vector>

namespace sketchkv::gpu {

IpcCache::~IpcCache() {
  MutexLock lock(&mu_);
  for (const auto& [handle, entry] : entries_) opener_->Close(entry.bytes);
}

absl::StatusOr<GpuBytes> IpcCache::Open(const GpuIpcHandle& handle) {
  {
    MutexLock lock(&mu_);
    while (true) {
      const auto [it, added] = entries_.try_emplace(handle);
      if (added) break;
      if (it->second.state == State::kOpen) return Use(&it->second);
      changed_.Wait(&mu_);
    }
  }
  const absl::StatusOr<std::span<std::byte>> bytes = opener_->Open(handle);
  MutexLock lock(&mu_);
  changed_.NotifyAll();
  if (!bytes.ok()) {
    entries_.erase(handle);
    return bytes.status();
  }
  Entry& entry = entries_[handle];
  entry.state = State::kOpen;
  entry.bytes = *bytes;
  return Use(&entry);
}

GpuBytes IpcCache::Use(Entry* entry) {
  ++entry->users;
  // An entry with users stays where it is.
  const std::shared_ptr<const void> owner(nullptr, [this, entry](const void*) {
    MutexLock lock(&mu_);
    --entry->users;
    entry->last_use = clock_->Now();
  });
  return {.bytes = entry->bytes, .owner = owner};
}

void IpcCache::CloseUnused() {
  std::vector<std::pair<GpuIpcHandle, std::span<std::byte>>> unused;
  {
    MutexLock lock(&mu_);
    const TimePoint now = clock_->Now();
    for (auto& [handle, entry] : entries_) {
      if (entry.state != State::kOpen || entry.users > 0 || now - entry.last_use < kKeep) continue;
      entry.state = State::kClosing;
      unused.emplace_back(handle, entry.bytes);
    }
  }
  // Who wants one meanwhile waits: the driver may not open what it is just closing.
  for (const auto& [handle, bytes] : unused) {
    opener_->Close(bytes);
    MutexLock lock(&mu_);
    entries_.erase(handle);
    changed_.NotifyAll();
  }
}

}  // namespace sketchkv::gpu
