#include "service/pool/slab_allocator.h"

#include <algorithm>
#include <bit>

#include "kernels/base/checked_math.h"

namespace sketchkv {
namespace {

// Two MiB is a huge page. More than 16,384 pages only cost time to search, and fewer than 32 leave
// several models no way to share a small budget.
size_t TargetPageBytes(size_t budget_bytes) {
  const size_t usual = std::max<size_t>(size_t{8} << 20, budget_bytes / 16384);
  return std::min(usual, budget_bytes / 32);
}

}  // namespace

SlabAllocator::SlabAllocator(size_t budget_bytes)
    : budget_bytes_(budget_bytes), target_page_bytes_(TargetPageBytes(budget_bytes)) {}

size_t SlabAllocator::PageBytes(size_t slot_bytes) const {
  const size_t slots = std::max<size_t>(1, target_page_bytes_ / slot_bytes);
  return RoundUp(slots * slot_bytes, kPageAlignment);
}

bool SlabAllocator::HasRoom(size_t slot_bytes) const {
  return HasFreeSlot(slot_bytes) || PageBytes(slot_bytes) <= budget_bytes_ - page_bytes_;
}

std::optional<SlabAllocator::Allocation> SlabAllocator::Allocate(size_t slot_bytes) {
  if (!HasRoom(slot_bytes)) return std::nullopt;
  Allocation allocation;
  auto partial = partial_.find(slot_bytes);
  if (partial != partial_.end()) {
    allocation.id.page = *partial->second.begin();
  } else {
    allocation.id.page = AddPage(slot_bytes);
    allocation.new_page = true;
    partial = partial_.try_emplace(slot_bytes).first;
    partial->second.insert(allocation.id.page);
  }
  Page& page = pages_[allocation.id.page];
  allocation.id.slot = TakeSlot(page);
  used_bytes_ += slot_bytes;
  if (page.used == page.num_slots) {
    partial->second.erase(allocation.id.page);
    if (partial->second.empty()) partial_.erase(partial);
  }
  return allocation;
}

bool SlabAllocator::Free(SlotId id) {
  Page& page = pages_[id.page];
  const uint32_t word = id.slot / 64;
  page.taken[word] &= ~(uint64_t{1} << (id.slot % 64));
  page.first_word = std::min(page.first_word, word);
  --page.used;
  used_bytes_ -= page.slot_bytes;
  if (page.used > 0) {
    partial_[page.slot_bytes].insert(id.page);
    return false;
  }
  const auto partial = partial_.find(page.slot_bytes);
  if (partial != partial_.end()) {  // not there when the page had one slot
    partial->second.erase(id.page);
    if (partial->second.empty()) partial_.erase(partial);
  }
  page_bytes_ -= PageBytes(page.slot_bytes);
  page = Page();
  unused_page_numbers_.push_back(id.page);
  return true;
}

uint32_t SlabAllocator::AddPage(size_t slot_bytes) {
  uint32_t number = 0;
  if (unused_page_numbers_.empty()) {
    number = static_cast<uint32_t>(pages_.size());
    pages_.emplace_back();
  } else {
    number = unused_page_numbers_.back();
    unused_page_numbers_.pop_back();
  }
  const size_t bytes = PageBytes(slot_bytes);
  Page& page = pages_[number];
  page.slot_bytes = slot_bytes;
  page.num_slots = static_cast<uint32_t>(bytes / slot_bytes);
  page.taken.assign((page.num_slots + 63) / 64, 0);
  page_bytes_ += bytes;
  return number;
}

uint32_t SlabAllocator::TakeSlot(Page& page) {
  while (page.taken[page.first_word] == ~uint64_t{0}) ++page.first_word;
  const auto bit = static_cast<uint32_t>(std::countr_one(page.taken[page.first_word]));
  page.taken[page.first_word] |= uint64_t{1} << bit;
  ++page.used;
  return page.first_word * 64 + bit;
}

}  // namespace sketchkv
