#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <set>
#include <vector>

#include "absl/container/flat_hash_map.h"

namespace sketchkv {

// A slot by numbers: the page, and the place in the page.
struct SlotId {
  uint32_t page = 0;
  uint32_t slot = 0;

  bool operator==(const SlotId&) const = default;
};

// Divides a byte budget into pages and pages into slots of one size, by arithmetic only: it touches
// no memory. A page belongs to one size class (= exact slot bytes) from its first slot to its last
// free; then its bytes go back to the budget, for any class. The sum of page bytes never exceeds
// the budget. Not thread-safe.
class SlabAllocator {
 public:
  static constexpr size_t kSlotAlignment = 64;
  static constexpr size_t kPageAlignment = 4096;

  explicit SlabAllocator(size_t budget_bytes);

  // Size of a page of this class: about 8 MiB, more where a slot or a large budget needs it, less
  // where the budget is small; a multiple of 4 KiB that wastes less than a slot and less than 4
  // KiB. `slot_bytes` is a positive multiple of 64, at most 2^62.
  [[nodiscard]] size_t PageBytes(size_t slot_bytes) const;

  // True when Allocate would succeed: a free slot in a page of the class, or budget for a page.
  [[nodiscard]] bool HasRoom(size_t slot_bytes) const;

  // True when Allocate would take no new page.
  [[nodiscard]] bool HasFreeSlot(size_t slot_bytes) const { return partial_.contains(slot_bytes); }

  struct Allocation {
    SlotId id;
    bool new_page = false;  // id.page was just taken from the budget
  };
  [[nodiscard]] std::optional<Allocation> Allocate(size_t slot_bytes);

  // `id` is in use. Returns true when its page went back to the budget.
  bool Free(SlotId id);

  // `page` is in use.
  [[nodiscard]] size_t SlotBytes(uint32_t page) const { return pages_[page].slot_bytes; }

  [[nodiscard]] size_t budget_bytes() const { return budget_bytes_; }
  [[nodiscard]] size_t page_bytes() const { return page_bytes_; }
  [[nodiscard]] size_t used_bytes() const { return used_bytes_; }

 private:
  struct Page {
    size_t slot_bytes = 0;  // 0: this number stands for no page now
    uint32_t num_slots = 0;
    uint32_t used = 0;
    uint32_t first_word = 0;      // no word of `taken` before this one has a free bit
    std::vector<uint64_t> taken;  // [ceil(num_slots / 64)], one bit a slot
  };

  uint32_t AddPage(size_t slot_bytes);
  static uint32_t TakeSlot(Page& page);

  const size_t budget_bytes_;
  const size_t target_page_bytes_;
  size_t page_bytes_ = 0;
  size_t used_bytes_ = 0;
  std::vector<Page> pages_;
  std::vector<uint32_t> unused_page_numbers_;
  // Pages of a class with a free slot. The lowest number is filled first, so that under a falling
  // load the others run empty and go back.
  absl::flat_hash_map<size_t, std::set<uint32_t>> partial_;
};

}  // namespace sketchkv
