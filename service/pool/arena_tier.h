#pragma once

#include <cstddef>
#include <map>
#include <span>
#include <utility>
#include <vector>

#include "service/pool/slab_allocator.h"
#include "service/pool/tier.h"

namespace sketchkv {

// Slots in memory that somebody else took in chunks and keeps until the tier is gone, such as that
// of a GPU: addresses only, no byte is touched. A page lies in one chunk, at the first place where
// it fits; so there may be no room for a page although as many bytes are free.
class ArenaTier final : public Tier {
 public:
  // The budget is what the chunks have in whole, aligned 4 KiB.
  explicit ArenaTier(const std::vector<std::span<std::byte>>& chunks);

  [[nodiscard]] size_t PageBytes(size_t slot_bytes) const override {
    return slabs_.PageBytes(slot_bytes);
  }
  [[nodiscard]] bool CanHold(size_t slot_bytes) const override;
  [[nodiscard]] bool HasRoom(size_t slot_bytes) const override;
  [[nodiscard]] absl::StatusOr<SlotId> Allocate(size_t slot_bytes) override;
  void Free(SlotId id) override;
  [[nodiscard]] std::span<std::byte> View(SlotId id) const override;
  [[nodiscard]] Stats GetStats() const override;

 private:
  using Place = std::pair<size_t, size_t>;  // chunk, offset
  using FreeRanges = std::map<Place, size_t>;
  struct Page {
    Place place;
    size_t bytes = 0;
  };

  [[nodiscard]] FreeRanges::const_iterator FirstFit(size_t bytes) const;
  void Release(const Page& page);

  std::vector<std::span<std::byte>> chunks_;  // aligned
  SlabAllocator slabs_;
  FreeRanges free_;          // bytes by place; two neighbours of a chunk never touch
  std::vector<Page> pages_;  // by page number
};

}  // namespace sketchkv
