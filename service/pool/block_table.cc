#include "service/pool/block_table.h"

#include <utility>

#include "absl/strings/str_format.h"
#include "kernels/base/status_macros.h"

namespace sketchkv {
namespace {

BlockKey ParentKey(const BlockPool::ReserveRequest& request) {
  return {request.key.tenant, request.key.fingerprint, *request.parent};
}

}  // namespace

BlockTable::BlockTable(std::unique_ptr<Tier> host, std::unique_ptr<Tier> gpu, EventLog* events)
    : tier_(std::move(host)), events_(events), copies_(std::move(gpu)) {}

BlockTable::~BlockTable() = default;

Entry* BlockTable::FindBlock(const BlockKey& key) const {
  Entry* const entry = index_.Find(key);
  return entry == nullptr || entry->is_ghost() ? nullptr : entry;
}

std::vector<Entry*> BlockTable::NextSealed(uint64_t* cursor, size_t limit) const {
  std::vector<Entry*> sealed;
  auto page = static_cast<uint32_t>(*cursor >> 32);
  auto slot = static_cast<uint32_t>(*cursor);
  for (; page < pages_.size(); ++page, slot = 0) {
    const std::vector<Entry*>& owners = pages_[page].owners;
    for (; slot < owners.size(); ++slot) {
      if (sealed.size() == limit) {
        *cursor = uint64_t{page} << 32 | slot;
        return sealed;
      }
      Entry* const entry = owners[slot];
      if (entry != nullptr && entry->sealed && !entry->hidden) sealed.push_back(entry);
    }
  }
  *cursor = 0;
  return sealed;
}

UnsealedCells* BlockTable::FindUnsealed(Entry* entry) {
  const auto it = unsealed_.find(entry);
  return it == unsealed_.end() ? nullptr : &it->second;
}

absl::StatusOr<Entry*> BlockTable::Create(const BlockPool::ReserveRequest& request) {
  SKETCHKV_RETURN_IF_ERROR(CheckFamily(request));
  // Making room must not take the parent: the chain is in use at its tip.
  Entry* parent = request.parent.has_value() ? FindBlock(ParentKey(request)) : nullptr;
  if (parent != nullptr) AddRef(parent);
  const absl::StatusOr<SlotId> slot = TakeSlot(request.shape.slot_bytes);
  std::optional<SlotId> gpu_slot;
  if (slot.ok() && request.want_gpu) gpu_slot = copies_.TakeSlot(request.shape.slot_bytes);
  if (parent != nullptr) DropRef(parent);
  SKETCHKV_RETURN_IF_ERROR(slot.status());

  Entry* const entry = index_.FindOrAddGhost(request.key);
  entry->slot = *slot;
  entry->cells = CellTable::Make(request.shape, request.num_tokens);
  entry->last_use = lru_.NextTick();
  if (request.parent.has_value()) {
    BlockIndex::Link(entry, index_.FindOrAddGhost(ParentKey(request)));
  }
  TakeOwnership(entry);
  unsealed_[entry].state.assign(entry->cells->num_cells(), UnsealedCells::kEmpty);
  ++stats_.blocks;
  AddRef(entry);
  if (gpu_slot.has_value()) {
    copies_.Attach(entry, *gpu_slot);
  } else if (request.want_gpu) {
    ++stats_.gpu_fallback_total;
  }
  return entry;
}

// A ghost of the key may be there already, with children that named it as their parent.
absl::Status BlockTable::CheckFamily(const BlockPool::ReserveRequest& request) const {
  const Entry* const ghost = index_.Find(request.key);
  if (ghost != nullptr && request.num_tokens < request.shape.block_tokens) {
    return absl::FailedPreconditionError(absl::StrFormat(
        "num_tokens: block %s has children, so it needs all block_tokens %d, not %d",
        request.key.hash.ToHex(), request.shape.block_tokens, request.num_tokens));
  }
  if (!request.parent.has_value()) return absl::OkStatus();
  const Entry* const parent = index_.Find(ParentKey(request));
  if (parent == nullptr) return absl::OkStatus();
  if (!parent->is_ghost() && parent->cells->is_short()) {
    return absl::FailedPreconditionError(absl::StrFormat(
        "parent_hash: block %s has %d of %d tokens, a short block is no parent",
        parent->key.hash.ToHex(), parent->cells->num_tokens, parent->cells->block_tokens));
  }
  if (ghost != nullptr && BlockIndex::IsUnfoundAncestor(ghost, parent)) {
    return absl::FailedPreconditionError(
        absl::StrFormat("parent_hash: block %s is itself a descendant of block %s",
                        parent->key.hash.ToHex(), request.key.hash.ToHex()));
  }
  return absl::OkStatus();
}

void BlockTable::AddRef(Entry* entry) {
  if (entry->refs++ > 0) return;
  ++pages_[entry->slot.page].num_referenced;
  stats_.pinned_bytes += Bytes(entry).size();
  UpdateEvictable(entry);
  copies_.Update(entry);
}

void BlockTable::DropRef(Entry* entry) {
  if (--entry->refs > 0) return;
  --pages_[entry->slot.page].num_referenced;
  stats_.pinned_bytes -= Bytes(entry).size();
  if (entry->hidden) {
    ReleaseSlot(entry);
    index_.Delete(entry);
    return;
  }
  const UnsealedCells* const cells = FindUnsealed(entry);
  if (cells != nullptr && cells->num_present == 0) {
    Detach(entry, BlockEventType::kDeleted);  // never announced: no event
    ReleaseSlot(entry);
    Settle(entry);
    return;
  }
  UpdateEvictable(entry);
  copies_.Update(entry);
}

void BlockTable::Touch(Entry* entry, uint64_t tick) {
  if (tick <= entry->last_use) return;
  copies_.Untrack(entry);
  if (entry->tracked) {
    const size_t slot_bytes = Bytes(entry).size();
    lru_.Untrack(slot_bytes, entry);
    entry->last_use = tick;
    lru_.Track(slot_bytes, entry);
  } else {
    entry->last_use = tick;
  }
  copies_.Update(entry);
}

void BlockTable::Announce(Entry* entry) {
  if (entry->announced) return;
  entry->announced = 1;
  events_->Append(BlockEventType::kStored, entry->key, entry->parent_hash());
}

void BlockTable::Seal(Entry* entry) {
  unsealed_.erase(entry);
  ++stats_.sealed_blocks;
  for (const Entry* found : BlockIndex::MarkSealed(entry)) {
    events_->Append(BlockEventType::kSealed, found->key, found->parent_hash());
  }
  if (entry->parent != nullptr) UpdateEvictable(entry->parent);
}

void BlockTable::Evict(Entry* entry) {
  Detach(entry, BlockEventType::kEvicted);
  ReleaseSlot(entry);
  Settle(entry);
}

void BlockTable::Hide(const std::vector<Entry*>& subtree) {
  for (size_t i = subtree.size(); i-- > 0;) {
    Entry* const entry = subtree[i];
    Detach(entry, BlockEventType::kDeleted);
    index_.Remove(entry);
    entry->hidden = 1;
    if (entry->refs > 0) continue;  // DropRef deletes it
    ReleaseSlot(entry);
    index_.Delete(entry);
  }
}

BlockTable::Stats BlockTable::GetStats() const {
  Stats stats = stats_;
  stats.tier = tier_->GetStats();
  stats.gpu = copies_.GetStats();
  return stats;
}

void BlockTable::UpdateEvictable(Entry* entry) {
  const bool evictable =
      !entry->is_ghost() && !entry->hidden && entry->refs == 0 && entry->sealed_children == 0;
  if (evictable == static_cast<bool>(entry->tracked)) return;
  entry->tracked = evictable ? 1 : 0;
  if (evictable) {
    lru_.Track(Bytes(entry).size(), entry);
  } else {
    lru_.Untrack(Bytes(entry).size(), entry);
  }
}

void BlockTable::TakeOwnership(Entry* entry) {
  if (entry->slot.page >= pages_.size()) pages_.resize(entry->slot.page + 1);
  Page& page = pages_[entry->slot.page];
  const size_t slot_bytes = Bytes(entry).size();
  if (page.num_used++ == 0) {
    page.slot_bytes = slot_bytes;
    page.owners.assign(tier_->PageBytes(slot_bytes) / slot_bytes, nullptr);
  }
  page.owners[entry->slot.slot] = entry;
}

void BlockTable::ReleaseSlot(Entry* entry) {
  Page& page = pages_[entry->slot.page];
  page.owners[entry->slot.slot] = nullptr;
  if (--page.num_used == 0) std::vector<Entry*>().swap(page.owners);
  copies_.Free(entry);
  tier_->Free(entry->slot);
  entry->slot = SlotId();
  entry->cells.reset();
}

void BlockTable::Detach(Entry* entry, BlockEventType event) {
  if (entry->tracked) {
    entry->tracked = 0;
    lru_.Untrack(Bytes(entry).size(), entry);
  }
  if (entry->announced) events_->Append(event, entry->key, entry->parent_hash());
  --stats_.blocks;
  if (entry->sealed) --stats_.sealed_blocks;
  if (!entry->sealed) unsealed_.erase(entry);

  copies_.Leave(entry);
  Entry* const parent = entry->parent;
  BlockIndex::Unlink(entry);
  if (parent != nullptr) Settle(parent);
  entry->sealed = entry->found = entry->announced = 0;
}

void BlockTable::Settle(Entry* entry) {
  if (entry->is_ghost()) {
    if (entry->first_child == nullptr) {
      index_.Remove(entry);
      index_.Delete(entry);
    }
  } else {
    UpdateEvictable(entry);
  }
}

}  // namespace sketchkv
