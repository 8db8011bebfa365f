#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/base/clock.h"
#include "service/pool/block_index.h"
#include "service/pool/block_pool.h"
#include "service/pool/entry.h"
#include "service/pool/event_log.h"
#include "service/pool/gpu_copies.h"
#include "service/pool/lru.h"
#include "service/pool/tier.h"

namespace sketchkv {

// The cells of a block that is not sealed yet; gone when it is.
struct UnsealedCells {
  enum State : uint8_t { kEmpty, kWriting, kPresent };
  std::vector<uint8_t> state;  // [num_layers * num_heads]
  size_t num_present = 0;
  TimePoint last_part;
};

// Blocks with their slots: joins index, tier and eviction order, and counts. Knows nothing of
// handles, leases and time. The pool calls it under its mutex.
//
// Invariant: an entry is in the Lru exactly when it has a slot, is in the index, has no reference
// and no sealed child. Every change of one of these ends in UpdateEvictable.
class BlockTable {
 public:
  // `gpu`: null where there is none.
  BlockTable(std::unique_ptr<Tier> host, std::unique_ptr<Tier> gpu, EventLog* events);
  ~BlockTable();

  [[nodiscard]] const BlockIndex& index() const { return index_; }
  [[nodiscard]] GpuCopies& copies() { return copies_; }
  // Block, not ghost; null when there is none.
  [[nodiscard]] Entry* FindBlock(const BlockKey& key) const;
  // Null for a sealed or hidden block.
  [[nodiscard]] UnsealedCells* FindUnsealed(Entry* entry);
  [[nodiscard]] const absl::flat_hash_map<Entry*, UnsealedCells>& unsealed() const {
    return unsealed_;
  }
  [[nodiscard]] std::span<std::byte> Bytes(const Entry* entry) const {
    return tier_->View(entry->slot);
  }

  // A new unsealed block with a slot, or two, and one reference; makes room for them. There is no
  // block of this key, and the request is valid. RESOURCE_EXHAUSTED and FAILED_PRECONDITION as
  // Reserve.
  [[nodiscard]] absl::StatusOr<Entry*> Create(const BlockPool::ReserveRequest& request);

  void AddRef(Entry* entry);
  // The last reference frees a hidden block, and drops one that has no cell.
  void DropRef(Entry* entry);

  uint64_t NextTick() { return lru_.NextTick(); }
  [[nodiscard]] uint64_t last_tick() const { return lru_.last_tick(); }
  // A use at `tick`; an earlier one than the last changes nothing.
  void Touch(Entry* entry, uint64_t tick);
  // The first cell is there.
  void Announce(Entry* entry);
  // All cells are there.
  void Seal(Entry* entry);

  // Up to `limit` sealed blocks from *cursor on, in the order of their slots, and moves the cursor
  // behind them; at the end of the table it goes back to 0.
  [[nodiscard]] std::vector<Entry*> NextSealed(uint64_t* cursor, size_t limit) const;

  // Drops one block without reference; sealed children stay and are not found any more.
  void Evict(Entry* entry);
  // Evicts the least recently used leaves, at most `limit`, until at most `used_bytes` are in use.
  void Trim(size_t used_bytes, size_t limit);
  // Takes these blocks out of the index and frees those without reference. Children stand after
  // their parents, and nobody's child is missing.
  void Hide(const std::vector<Entry*>& subtree);

  struct Stats {
    Tier::Stats tier;
    size_t pinned_bytes = 0;
    uint64_t blocks = 0;
    uint64_t sealed_blocks = 0;
    uint64_t evicted_total = 0;
    uint64_t gpu_fallback_total = 0;
    GpuCopies::Stats gpu;
  };
  [[nodiscard]] Stats GetStats() const;

 private:
  struct Page {
    std::vector<Entry*> owners;  // by slot
    size_t slot_bytes = 0;
    uint32_t num_used = 0;
    uint32_t num_referenced = 0;  // owners with refs > 0: the page cannot be freed
  };
  // What must go for a page to become free: its blocks and all sealed blocks below them.
  struct PagePlan {
    uint32_t page = 0;
    size_t num_blocks = 0;
    uint64_t last_use = 0;  // of the most recently used of them
  };
  struct RoomPlan {
    std::vector<PagePlan> pages;
    size_t planned_bytes = 0;
    size_t work_left = 0;  // blocks that may still be looked at
    absl::flat_hash_set<uint32_t> seen_pages;
    absl::flat_hash_set<const Entry*> seen_blocks;
  };

  [[nodiscard]] absl::Status CheckFamily(const BlockPool::ReserveRequest& request) const;
  void UpdateEvictable(Entry* entry);
  void TakeOwnership(Entry* entry);
  void ReleaseSlot(Entry* entry);
  // Ends what a block has in the index and in the counts, with an event if it was announced.
  void Detach(Entry* entry, BlockEventType event);
  // After a child or the slot went: a ghost without children goes, a block may be evictable now.
  void Settle(Entry* entry);

  // In block_table_room.cc.
  [[nodiscard]] absl::StatusOr<SlotId> TakeSlot(size_t slot_bytes);
  [[nodiscard]] absl::Status MakeRoom(size_t slot_bytes);
  [[nodiscard]] bool FreePagesOfOthers(size_t slot_bytes);
  [[nodiscard]] std::vector<PagePlan> PlanPages(size_t slot_bytes, size_t needed_bytes) const;
  void PlanPage(uint32_t page_number, RoomPlan* room) const;
  void EvictPage(uint32_t page);

  const std::unique_ptr<Tier> tier_;
  EventLog* const events_;
  BlockIndex index_;
  Lru lru_;
  std::vector<Page> pages_;  // by page number of the tier
  absl::flat_hash_map<Entry*, UnsealedCells> unsealed_;
  GpuCopies copies_;
  Stats stats_;  // all but `tier` and `gpu`
};

}  // namespace sketchkv
