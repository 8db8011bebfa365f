#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "service/pool/entry.h"
#include "service/pool/lru.h"
#include "service/pool/tier.h"

namespace sketchkv {

// The second slots of blocks, on a GPU, beside those that they have in the host tier: which block
// has one, and whose goes first. It keeps these bits of an entry: on_gpu, host_stale, child_on_gpu
// and copy_tracked. Nothing here reads or copies bytes. Not thread-safe; the pool calls it under
// its mutex.
//
// Invariant: an entry is in the order of dropping exactly when it has a copy, is in the index, has
// no reference, no child with a copy, and its host bytes are there. So a chain goes from its tip.
class GpuCopies {
 public:
  static constexpr uint64_t kAnyTick = std::numeric_limits<uint64_t>::max();

  // Null: there is no GPU, as after Close.
  explicit GpuCopies(std::unique_ptr<Tier> tier)
      : tier_(std::move(tier)), closed_(tier_ == nullptr) {}

  // Empty: the block has no copy.
  [[nodiscard]] std::span<std::byte> View(Entry* entry) const;
  // Of a slot from TakeSlot.
  [[nodiscard]] std::span<std::byte> View(SlotId slot) const { return tier_->View(slot); }

  // A slot that belongs to no block yet. Where there is no room, drops the least recently used
  // copies for it, none that was used after `newest`. Nullopt: no room even so.
  [[nodiscard]] std::optional<SlotId> TakeSlot(size_t slot_bytes, uint64_t newest = kAnyTick);
  // Makes such a slot the copy of a block without one.
  void Attach(Entry* entry, SlotId slot);
  // Frees the copy, if there is one.
  void Free(Entry* entry);

  // TakeSlot for a sealed block. Nullopt also when it has a copy, or is being promoted already.
  [[nodiscard]] std::optional<SlotId> BeginPromotion(Entry* entry, size_t slot_bytes,
                                                     uint64_t newest);
  // Attaches the slot if `copied`, and there is still a GPU and the block; else frees it. Returns
  // whether it is attached.
  bool EndPromotion(Entry* entry, SlotId slot, bool copied);

  // The copy is ahead of the host bytes, or they are equal again.
  void MarkStale(Entry* entry);
  void MarkWritten(Entry* entry);
  // Sealed blocks with stale host bytes, at most `limit`, those that wait longest first.
  [[nodiscard]] std::vector<Entry*> Stale(size_t limit) const;

  // After a change of `refs`, or of last_use with Untrack before it.
  void Update(Entry* entry) {
    const bool droppable = entry->on_gpu && !entry->hidden && entry->refs == 0 &&
                           !entry->host_stale && !entry->child_on_gpu;
    if (droppable != static_cast<bool>(entry->copy_tracked)) SetTracked(entry, droppable);
  }
  void Untrack(Entry* entry) {
    if (entry->copy_tracked) SetTracked(entry, false);
  }
  // Before the block loses its parent and its place in the index.
  void Leave(Entry* entry);

  // No block has a copy from now on, and none gets one. Returns the blocks whose host bytes are
  // stale, hidden ones too: nobody has their bytes any more.
  [[nodiscard]] std::vector<Entry*> Close();
  [[nodiscard]] bool closed() const { return closed_; }

  // Rises when a block gets a copy after it was sealed, or its host bytes are there again.
  [[nodiscard]] uint64_t changes() const { return promoted_total_ + written_total_; }

  struct Stats {
    Tier::Stats tier;  // zeros once closed
    uint64_t blocks = 0;
    uint64_t stale_blocks = 0;
    uint64_t promoted_total = 0;
    uint64_t demoted_total = 0;  // copies dropped for room
  };
  [[nodiscard]] Stats GetStats() const;

 private:
  struct Copy {
    SlotId slot;
    uint64_t stale_since = 0;  // a count, while host_stale
  };

  void SetTracked(Entry* entry, bool tracked);
  void CountChild(Entry* parent);
  void UncountChild(Entry* parent);

  const std::unique_ptr<Tier> tier_;
  bool closed_;
  absl::flat_hash_map<Entry*, Copy> copies_;
  Lru order_;
  absl::flat_hash_map<Entry*, uint32_t> children_;  // with a copy, where there is one
  std::map<uint64_t, Entry*> stale_;                // by Copy::stale_since
  uint64_t num_made_stale_ = 0;
  absl::flat_hash_set<const Entry*> promoting_;
  uint64_t promoted_total_ = 0;
  uint64_t written_total_ = 0;
  uint64_t demoted_total_ = 0;
};

}  // namespace sketchkv
