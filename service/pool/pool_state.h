#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "kernels/base/clock.h"
#include "kernels/base/mutex.h"
#include "service/pool/block_pool.h"
#include "service/pool/block_table.h"
#include "service/pool/lease_table.h"
#include "service/pool/tick_history.h"

namespace sketchkv {

// What the pool shares with its handles: everything behind one mutex. Under it are index and policy
// only, and the mapping and unmapping of pages; never the bytes of a block. Lock order: mu, then
// the event log's own; the tier has no lock, since it is called under mu alone.
class PoolState {
 public:
  PoolState(const BlockPool::Options& options, const Clock* clock, std::unique_ptr<Tier> gpu);

  // Claims and pins come to life under the mutex and end by taking it: none may be destroyed while
  // it is held.
  [[nodiscard]] absl::StatusOr<WriteHandle> Reserve(const BlockPool::ReserveRequest& request);
  [[nodiscard]] absl::StatusOr<WriteHandle::CommitResult> Commit(
      WriteHandle::Claim* claim, std::span<const uint32_t> checksums, HostBytes host);
  void EndClaim(WriteHandle::Claim* claim);
  [[nodiscard]] std::vector<PromotionHandle> ReservePromotions(std::span<const BlockKey> keys);
  bool EndPromotion(const PromotionHandle::Promotion& promotion, bool copied);
  [[nodiscard]] absl::StatusOr<bool> IsStale(const ReadPins& pins, size_t i) const;
  void MarkWritten(const ReadPins& stale, size_t i);
  void Unpin(const std::vector<Entry*>& blocks);

  [[nodiscard]] Entry* FindFound(const BlockKey& key) const SKETCHKV_REQUIRES(mu);
  // `tip` and its ancestors, root first. NOT_FOUND as PinChain.
  [[nodiscard]] absl::StatusOr<std::vector<Entry*>> ResolveChain(const BlockKey& tip) const
      SKETCHKV_REQUIRES(mu);
  // Pin counts as one use of all of them, Hold as none.
  [[nodiscard]] ReadPins Pin(std::vector<Entry*> blocks) SKETCHKV_REQUIRES(mu);
  [[nodiscard]] ReadPins Hold(std::vector<Entry*> blocks) SKETCHKV_REQUIRES(mu);
  // What a lease's use says of its blocks, once nothing else keeps them.
  void TouchLeased(const LeaseTable::Lease& lease) SKETCHKV_REQUIRES(mu);
  // Pins the chain of a lease anew where the copies of its blocks may be others now. Returns the
  // pins that it replaces, or null.
  [[nodiscard]] std::shared_ptr<const ReadPins> RefreshChain(LeaseTable::Lease* lease,
                                                             TimePoint now) SKETCHKV_REQUIRES(mu);
  // Hides `top` and all below. Returns how many.
  size_t HideSubtree(Entry* top) SKETCHKV_REQUIRES(mu);
  // The same, and leases over any of them end.
  size_t DiscardSubtree(Entry* top) SKETCHKV_REQUIRES(mu);
  [[nodiscard]] size_t CloseGpu() SKETCHKV_REQUIRES(mu);
  void ExpireUnsealed(TimePoint now) SKETCHKV_REQUIRES(mu);

  // Constant after construction.
  const BlockPool::Options options;
  const Clock* const clock;
  // Has a lock of its own.
  EventLog events;

  mutable Mutex mu;
  BlockTable table SKETCHKV_GUARDED_BY(mu);
  LeaseTable leases SKETCHKV_GUARDED_BY(mu);
  TickHistory uses SKETCHKV_GUARDED_BY(mu);
  uint64_t expired_total SKETCHKV_GUARDED_BY(mu) = 0;
  uint64_t deleted_total SKETCHKV_GUARDED_BY(mu) = 0;
  uint64_t discarded_total SKETCHKV_GUARDED_BY(mu) = 0;
  uint64_t gpu_lost_total SKETCHKV_GUARDED_BY(mu) = 0;

 private:
  [[nodiscard]] absl::Status CheckStored(const BlockPool::ReserveRequest& request, Entry* entry)
      SKETCHKV_REQUIRES(mu);
};

struct WriteHandle::Claim {
  PoolState* pool = nullptr;
  Entry* entry = nullptr;
  std::span<std::byte> slot;
  std::span<std::byte> gpu_slot;  // empty: none
  std::vector<Cell> cells;
  bool committed = false;
};

struct PromotionHandle::Promotion {
  PoolState* pool = nullptr;
  Entry* entry = nullptr;
  SlotId slot;
  std::span<const std::byte> bytes;
  std::span<std::byte> gpu_slot;
};

struct ReadPins::Pinned {
  PoolState* pool = nullptr;
  std::vector<Entry*> blocks;
  std::vector<std::span<const std::byte>> bytes;
  std::vector<std::byte*> gpu;  // null: none
  std::vector<bool> host_stale;
  bool any_on_gpu = false;
  bool any_host_stale = false;
  bool all_on_both = true;  // all on the GPU, and no host bytes stale
  std::once_flag counted;
  std::vector<uint64_t> token_begin;  // after `counted`
  std::once_flag divided;
  std::vector<size_t> run_ends;  // after `divided`
};

}  // namespace sketchkv
