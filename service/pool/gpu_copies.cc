#include "service/pool/gpu_copies.h"

namespace sketchkv {
namespace {

// Of one slot, all of it under the pool's mutex. Past it a copy of the same size goes, wherever
// there is one, which makes room at once.
constexpr size_t kMaxDropped = 4096;

}  // namespace

std::span<std::byte> GpuCopies::View(Entry* entry) const {
  if (!entry->on_gpu) return {};
  return tier_->View(copies_.find(entry)->second.slot);
}

std::optional<SlotId> GpuCopies::TakeSlot(size_t slot_bytes, uint64_t newest) {
  if (closed_ || !tier_->CanHold(slot_bytes)) return std::nullopt;
  for (size_t dropped = 0; !tier_->HasRoom(slot_bytes); ++dropped) {
    Entry* const coldest =
        dropped < kMaxDropped ? order_.ColdestOfAll() : order_.Coldest(slot_bytes);
    if (coldest == nullptr || coldest->last_use > newest) return std::nullopt;
    Free(coldest);
    ++demoted_total_;
  }
  const absl::StatusOr<SlotId> slot = tier_->Allocate(slot_bytes);
  return slot.ok() ? std::optional(*slot) : std::nullopt;
}

void GpuCopies::Attach(Entry* entry, SlotId slot) {
  copies_.emplace(entry, Copy{.slot = slot});
  entry->on_gpu = 1;
  if (entry->parent != nullptr) CountChild(entry->parent);
  Update(entry);
}

void GpuCopies::Free(Entry* entry) {
  if (!entry->on_gpu) return;
  Leave(entry);
  const auto it = copies_.find(entry);
  tier_->Free(it->second.slot);
  if (entry->host_stale) stale_.erase(it->second.stale_since);
  copies_.erase(it);
  entry->on_gpu = entry->host_stale = 0;
}

std::optional<SlotId> GpuCopies::BeginPromotion(Entry* entry, size_t slot_bytes, uint64_t newest) {
  if (entry->on_gpu || promoting_.contains(entry)) return std::nullopt;
  const std::optional<SlotId> slot = TakeSlot(slot_bytes, newest);
  if (slot.has_value()) promoting_.insert(entry);
  return slot;
}

bool GpuCopies::EndPromotion(Entry* entry, SlotId slot, bool copied) {
  promoting_.erase(entry);
  if (!copied || closed_ || entry->hidden) {
    tier_->Free(slot);
    return false;
  }
  Attach(entry, slot);
  ++promoted_total_;
  return true;
}

void GpuCopies::MarkStale(Entry* entry) {
  if (entry->host_stale) return;
  entry->host_stale = 1;
  Copy& copy = copies_.find(entry)->second;
  copy.stale_since = ++num_made_stale_;
  stale_.emplace(copy.stale_since, entry);
  Update(entry);
}

void GpuCopies::MarkWritten(Entry* entry) {
  if (!entry->host_stale) return;
  stale_.erase(copies_.find(entry)->second.stale_since);
  entry->host_stale = 0;
  ++written_total_;
  Update(entry);
}

std::vector<Entry*> GpuCopies::Stale(size_t limit) const {
  std::vector<Entry*> sealed;
  for (const auto& [since, entry] : stale_) {
    if (sealed.size() == limit) break;
    if (entry->sealed && !entry->hidden) sealed.push_back(entry);
  }
  return sealed;
}

void GpuCopies::Leave(Entry* entry) {
  Untrack(entry);
  if (entry->on_gpu && entry->parent != nullptr) UncountChild(entry->parent);
}

std::vector<Entry*> GpuCopies::Close() {
  closed_ = true;
  std::vector<Entry*> lost;
  for (const auto& [since, entry] : stale_) lost.push_back(entry);
  while (!copies_.empty()) Free(copies_.begin()->first);
  return lost;
}

GpuCopies::Stats GpuCopies::GetStats() const {
  Stats stats;
  if (!closed_) stats.tier = tier_->GetStats();
  stats.blocks = copies_.size();
  stats.stale_blocks = stale_.size();
  stats.promoted_total = promoted_total_;
  stats.demoted_total = demoted_total_;
  return stats;
}

void GpuCopies::SetTracked(Entry* entry, bool tracked) {
  const size_t slot_bytes = View(entry).size();
  entry->copy_tracked = tracked ? 1 : 0;
  if (tracked) {
    order_.Track(slot_bytes, entry);
  } else {
    order_.Untrack(slot_bytes, entry);
  }
}

void GpuCopies::CountChild(Entry* parent) {
  if (++children_[parent] > 1) return;
  parent->child_on_gpu = 1;
  Update(parent);
}

void GpuCopies::UncountChild(Entry* parent) {
  const auto it = children_.find(parent);
  if (--it->second > 0) return;
  children_.erase(it);
  parent->child_on_gpu = 0;
  Update(parent);
}

}  // namespace sketchkv
