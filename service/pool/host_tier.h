#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "service/pool/slab_allocator.h"
#include "service/pool/tier.h"

namespace sketchkv {

// Host memory: one anonymous mapping per slab page, unmapped when the page goes back to the budget,
// so that the resident set falls with the pool.
//
// Slots are not cleared between owners. Nobody sees old bytes: a cell is shown only once it is
// committed, and who claims a cell overwrites every byte of it before the commit.
class HostTier final : public Tier {
 public:
  explicit HostTier(size_t budget_bytes) : slabs_(budget_bytes) {}
  ~HostTier() override;
  HostTier(const HostTier&) = delete;
  HostTier& operator=(const HostTier&) = delete;

  [[nodiscard]] size_t PageBytes(size_t slot_bytes) const override {
    return slabs_.PageBytes(slot_bytes);
  }
  [[nodiscard]] bool CanHold(size_t slot_bytes) const override {
    return slot_bytes <= slabs_.budget_bytes() && PageBytes(slot_bytes) <= slabs_.budget_bytes();
  }
  [[nodiscard]] bool HasRoom(size_t slot_bytes) const override {
    return slabs_.HasRoom(slot_bytes);
  }
  [[nodiscard]] absl::StatusOr<SlotId> Allocate(size_t slot_bytes) override;
  void Free(SlotId id) override;
  [[nodiscard]] std::span<std::byte> View(SlotId id) const override;
  [[nodiscard]] Stats GetStats() const override;

 private:
  struct Mapping {
    std::byte* base = nullptr;
    size_t bytes = 0;
  };

  SlabAllocator slabs_;
  std::vector<Mapping> mappings_;  // by page number
};

}  // namespace sketchkv
