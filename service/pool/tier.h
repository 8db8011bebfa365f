#pragma once

#include <cstddef>
#include <span>

#include "absl/status/statusor.h"
#include "service/pool/slab_allocator.h"

namespace sketchkv {

// A place where blocks lie: slots of bytes and nothing about keys, pins or policy. Calls come one
// at a time (the pool makes them under its mutex); the bytes of a slot in use belong to whoever
// holds the slot, and are read and written without any lock.
class Tier {
 public:
  virtual ~Tier() = default;

  // Size of the page that a slot of this size lives in; pages are what the budget is spent on.
  [[nodiscard]] virtual size_t PageBytes(size_t slot_bytes) const = 0;
  // False: not even when all of it is free.
  [[nodiscard]] virtual bool CanHold(size_t slot_bytes) const = 0;
  // False: the budget has no room for a slot of this size until others are freed.
  [[nodiscard]] virtual bool HasRoom(size_t slot_bytes) const = 0;
  // RESOURCE_EXHAUSTED when there is no room, or the system has no memory left. The bytes are
  // undefined (a slot keeps what its last owner wrote). `slot_bytes` is a positive multiple of 64.
  [[nodiscard]] virtual absl::StatusOr<SlotId> Allocate(size_t slot_bytes) = 0;
  virtual void Free(SlotId id) = 0;
  // The bytes of a slot in use [slot_bytes], 64-byte aligned; valid until Free.
  [[nodiscard]] virtual std::span<std::byte> View(SlotId id) const = 0;

  struct Stats {
    size_t budget_bytes = 0;
    size_t page_bytes = 0;  // pages taken from the budget
    size_t used_bytes = 0;  // slots in use
  };
  [[nodiscard]] virtual Stats GetStats() const = 0;
};

}  // namespace sketchkv
