#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <span>

#include "absl/status/statusor.h"
#include "kernels/base/clock.h"
#include "kernels/base/mutex.h"
#include "service/engine/gpu.h"

namespace sketchkv::gpu {

// Maps allocations of other processes on the card. Calls may wait for the driver. Thread-safe.
class IpcOpener {
 public:
  virtual ~IpcOpener() = default;
  // All bytes of the allocation. INVALID_ARGUMENT when the card does not know it.
  [[nodiscard]] virtual absl::StatusOr<std::span<std::byte>> Open(const GpuIpcHandle& handle) = 0;
  virtual void Close(std::span<std::byte> bytes) = 0;
};

// Allocations of other processes, each open once, whoever asks for it at the same time: to open one
// takes longer than most calls. Closed a while after its last user has gone. Thread-safe.
class IpcCache {
 public:
  // For how long nobody uses what stays open: its memory is taken, also when its process has freed
  // it or has died.
  static constexpr std::chrono::seconds kKeep{5};

  // Both outlive the cache, which outlives what it gives.
  IpcCache(IpcOpener* opener, const Clock* clock) : opener_(opener), clock_(clock) {}
  // Closes all.
  ~IpcCache();
  IpcCache(const IpcCache&) = delete;
  IpcCache& operator=(const IpcCache&) = delete;

  // Errors are the opener's and are not kept.
  [[nodiscard]] absl::StatusOr<GpuBytes> Open(const GpuIpcHandle& handle);
  // To be called every second or so: closes what nobody has used for kKeep.
  void CloseUnused();

 private:
  enum class State : uint8_t { kOpening, kOpen, kClosing };
  struct Entry {
    State state = State::kOpening;
    std::span<std::byte> bytes;
    uint64_t users = 0;
    TimePoint last_use;  // when the last user went
  };

  [[nodiscard]] GpuBytes Use(Entry* entry) SKETCHKV_REQUIRES(mu_);

  IpcOpener* const opener_;
  const Clock* const clock_;
  Mutex mu_;
  CondVar changed_;  // an entry was opened or has gone
  std::map<GpuIpcHandle, Entry> entries_ SKETCHKV_GUARDED_BY(mu_);
};

}  // namespace sketchkv::gpu
