// The eviction policy: who goes when a slot is needed and the budget is full. README.md has it in
// words.

#include <algorithm>
#include <utility>

#include "absl/strings/str_format.h"
#include "kernels/base/status_macros.h"
#include "service/pool/block_table.h"

namespace sketchkv {
namespace {

// Bounds on the work of one call, all of it under the pool's mutex.
constexpr size_t kMinCandidates = 8;  // pages to choose the coldest from
constexpr size_t kMaxBlocksPlanned = 65536;
constexpr size_t kPlannedBytesPerBlock = 1024;  // a larger need may look at more blocks

}  // namespace

absl::StatusOr<SlotId> BlockTable::TakeSlot(size_t slot_bytes) {
  SKETCHKV_RETURN_IF_ERROR(MakeRoom(slot_bytes));
  return tier_->Allocate(slot_bytes);
}

absl::Status BlockTable::MakeRoom(size_t slot_bytes) {
  const Tier::Stats tier = tier_->GetStats();
  if (!tier_->CanHold(slot_bytes)) {
    return absl::ResourceExhaustedError(absl::StrFormat(
        "slot_bytes %d, in whole pages of 4096 bytes, are more than budget_bytes %d", slot_bytes,
        tier.budget_bytes));
  }
  if (tier_->HasRoom(slot_bytes)) return absl::OkStatus();

  Entry* const own = lru_.Coldest(slot_bytes);
  const bool own_is_coldest = own != nullptr && own == lru_.ColdestOfAll();
  if (!own_is_coldest && FreePagesOfOthers(slot_bytes)) return absl::OkStatus();
  if (own == nullptr) {
    return absl::ResourceExhaustedError(absl::StrFormat(
        "slot_bytes %d: nothing can be evicted: budget_bytes %d, page_bytes %d, used_bytes %d, "
        "pinned or in writing %d bytes",
        slot_bytes, tier.budget_bytes, tier.page_bytes, tier.used_bytes, stats_.pinned_bytes));
  }
  Evict(own);
  ++stats_.evicted_total;
  return absl::OkStatus();
}

void BlockTable::Trim(size_t used_bytes, size_t limit) {
  for (size_t i = 0; i < limit && tier_->GetStats().used_bytes > used_bytes; ++i) {
    Entry* const coldest = lru_.ColdestOfAll();
    if (coldest == nullptr) return;
    Evict(coldest);
    ++stats_.evicted_total;
  }
}

bool BlockTable::FreePagesOfOthers(size_t slot_bytes) {
  const Tier::Stats tier = tier_->GetStats();
  const size_t needed = tier_->PageBytes(slot_bytes) - (tier.budget_bytes - tier.page_bytes);
  const std::vector<PagePlan> plans = PlanPages(slot_bytes, needed);
  for (const PagePlan& plan : plans) EvictPage(plan.page);
  return !plans.empty();
}

// The coldest pages of other classes that free `needed_bytes` together, or none. Pages are found by
// their leaves: a page whose leaves are cold, near the tip of a chain, takes few others with it,
// where the page of the chain's root would take the whole chain. Only a need of many pages, more
// than there are leaves, climbs from the leaves to the pages of their ancestors.
std::vector<BlockTable::PagePlan> BlockTable::PlanPages(size_t slot_bytes,
                                                        size_t needed_bytes) const {
  RoomPlan room;
  room.work_left = kMaxBlocksPlanned + needed_bytes / kPlannedBytesPerBlock;
  for (const bool climb : {false, true}) {
    const size_t min_candidates = climb ? 0 : kMinCandidates;
    lru_.VisitOthers(slot_bytes, [&](Entry* leaf) {
      for (const Entry* entry = leaf; entry != nullptr && !entry->is_ghost() && room.work_left > 0;
           entry = climb ? entry->parent : nullptr) {
        --room.work_left;
        PlanPage(entry->slot.page, &room);
        if (room.planned_bytes >= needed_bytes && room.pages.size() >= min_candidates) return false;
      }
      return room.work_left > 0;
    });
    if (room.planned_bytes >= needed_bytes) break;
  }
  if (room.planned_bytes < needed_bytes) return {};

  std::vector<PagePlan>& pages = room.pages;
  std::sort(pages.begin(), pages.end(), [](const PagePlan& a, const PagePlan& b) {
    return a.last_use != b.last_use ? a.last_use < b.last_use : a.num_blocks < b.num_blocks;
  });
  size_t count = 0;
  for (size_t freed = 0; freed < needed_bytes; ++count) {
    freed += tier_->PageBytes(pages_[pages[count].page].slot_bytes);
  }
  pages.resize(count);
  return std::move(pages);
}

void BlockTable::PlanPage(uint32_t page_number, RoomPlan* room) const {
  const Page& page = pages_[page_number];
  if (page.num_referenced > 0 || !room->seen_pages.insert(page_number).second) return;
  std::vector<const Entry*> closure;  // what other planned pages take already is not in it
  for (const Entry* owner : page.owners) {
    if (owner != nullptr && room->seen_blocks.insert(owner).second) closure.push_back(owner);
  }
  PagePlan plan{page_number, 0, 0};
  bool can_go = true;
  for (size_t i = 0; i < closure.size() && can_go; ++i) {
    const Entry* const entry = closure[i];
    can_go = entry->refs == 0 && room->work_left > 0;
    if (room->work_left > 0) --room->work_left;
    plan.last_use = std::max(plan.last_use, entry->last_use);
    for (const Entry* child = entry->first_child; child != nullptr; child = child->next_sibling) {
      if (child->sealed && room->seen_blocks.insert(child).second) closure.push_back(child);
    }
  }
  if (!can_go) {
    for (const Entry* entry : closure) room->seen_blocks.erase(entry);
    return;
  }
  plan.num_blocks = closure.size();
  room->pages.push_back(plan);
  room->planned_bytes += tier_->PageBytes(page.slot_bytes);
}

// Leaf first, as everywhere: a reader of the events never sees a parent go before its sealed child.
void BlockTable::EvictPage(uint32_t page) {
  for (size_t slot = 0; slot < pages_[page].owners.size(); ++slot) {
    Entry* const top = pages_[page].owners[slot];
    if (top == nullptr) continue;
    std::vector<Entry*> subtree = {top};
    for (size_t i = 0; i < subtree.size(); ++i) {
      for (Entry* child = subtree[i]->first_child; child != nullptr; child = child->next_sibling) {
        if (child->sealed) subtree.push_back(child);
      }
    }
    for (size_t i = subtree.size(); i-- > 0;) {
      Evict(subtree[i]);
      ++stats_.evicted_total;
    }
  }
}

}  // namespace sketchkv
