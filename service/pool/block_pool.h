#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/base/clock.h"
#include "service/pool/block.h"
#include "service/pool/event_log.h"
#include "service/pool/handles.h"
#include "service/pool/tier.h"

namespace sketchkv {

class PoolState;

// The bytes and keys of all blocks: index, slots, pins, leases, eviction. Knows neither codec nor
// protocol. Thread-safe; no lock is held while bytes are written, read or copied.
//
// A block is *sealed* when all its cells are committed, and *found* when it and all its ancestors
// are sealed. Slots are exact; the sum of slab pages never exceeds the budget. When it is full, the
// least recently used unpinned block without sealed children goes first.
class BlockPool {
 public:
  struct Options {
    size_t budget_bytes = 0;
    double high_watermark = 0.97;                   // of the budget: Expire evicts down to it
    double max_leased_fraction = 0.8;               // of the budget, pinned by leases
    std::chrono::milliseconds unsealed_ttl{30000};  // after the last part
    std::chrono::milliseconds max_lease_ttl{600000};
    // A promotion takes the slots of copies that were not used for so long, and no others: where
    // the blocks in use are more than the GPU holds, some stay there, instead of all going round.
    std::chrono::milliseconds gpu_promote_idle{10000};
    size_t event_capacity = 65536;
  };
  // `clock` outlives the pool. `gpu` holds the second slots of blocks; null: there is no GPU.
  BlockPool(const Options& options, const Clock* clock, std::unique_ptr<Tier> gpu = nullptr);
  ~BlockPool();  // all handles, pins and leases are gone

  struct ReserveRequest {
    BlockKey key;
    std::optional<BlockHash> parent;  // of the same tenant and fingerprint; none: a root
    uint32_t num_tokens = 0;          // 1..block_tokens
    BlockShape shape;
    CellRange range;
    bool want_gpu = false;  // a new block gets a slot on the GPU too, if there is room
  };
  // Claims the cells of `range` that are not there yet, making the block and its slot if needed and
  // evicting for it. Errors, none of which changes anything:
  //   ABORTED             a cell of the range is being written by another handle: try again
  //   FAILED_PRECONDITION another parent, num_tokens differs from the stored one, the parent is a
  //                       short block (num_tokens < block_tokens), or this block is short and has
  //                       children
  //   RESOURCE_EXHAUSTED  the slot is larger than the budget, or everything is pinned or in writing
  [[nodiscard]] absl::StatusOr<WriteHandle> Reserve(const ReserveRequest& request);

  // Pins one found block. NOT_FOUND names the hash.
  [[nodiscard]] absl::StatusOr<ReadPins> Pin(const BlockKey& key);
  // Pins these blocks, all or none, in this order. NOT_FOUND names the first that is not found.
  [[nodiscard]] absl::StatusOr<ReadPins> PinAll(std::span<const BlockKey> keys);
  // Pins `tip` and all its ancestors, root first. NOT_FOUND names the first missing ancestor, root
  // first where several are.
  [[nodiscard]] absl::StatusOr<ReadPins> PinChain(const BlockKey& tip);

  // Pins up to `limit` sealed blocks of any tenant from *cursor on (0: the first) and moves it
  // behind them, back to 0 after the last: what a scrub walks. Does not count as use.
  [[nodiscard]] ReadPins PinNext(uint64_t* cursor, size_t limit);

  // How many of `chain` (hashes from the root on, each the child of the one before) are found, from
  // the first on without a hole. Counts as use of those.
  [[nodiscard]] size_t LookupPrefix(uint32_t tenant, const Fingerprint& fingerprint,
                                    std::span<const BlockHash> chain);

  struct Lease {
    uint64_t id = 0;                   // random
    std::chrono::milliseconds ttl{0};  // granted; at most max_lease_ttl
  };
  // Pins `tip` and its ancestors until the lease is released or runs out. NOT_FOUND as PinChain;
  // RESOURCE_EXHAUSTED when leases would pin more than max_leased_fraction of the budget (a block
  // under several leases counts once).
  [[nodiscard]] absl::StatusOr<Lease> AcquireLease(const BlockKey& tip,
                                                   std::chrono::milliseconds ttl);
  // NOT_FOUND for an unknown, released or expired lease, or one of another tenant. A lease outlives
  // the delete of its blocks but is not renewed then; one over a discarded block has ended.
  [[nodiscard]] absl::StatusOr<Lease> RenewLease(uint32_t tenant, uint64_t id,
                                                 std::chrono::milliseconds ttl);
  [[nodiscard]] absl::Status ReleaseLease(uint32_t tenant, uint64_t id);
  // The leased chain, root first; it stays pinned while the pointer lives, even past the lease.
  // Copies on the GPU that were added later are shown within 50 ms; none is once it is closed.
  [[nodiscard]] absl::StatusOr<std::shared_ptr<const ReadPins>> LeasedChain(uint32_t tenant,
                                                                            uint64_t id);

  // Hides the block and its whole subtree at once; bytes are freed at the last unpin. Returns how
  // many blocks were hidden; NOT_FOUND when there is no such block (sealed or not).
  [[nodiscard]] absl::StatusOr<size_t> Delete(const BlockKey& key);
  // The same for every block of a model. Returns how many.
  size_t Clear(uint32_t tenant, const Fingerprint& fingerprint);

  // Drops a block whose bytes turned out wrong, as Delete does, and counts it.
  void Discard(const BlockKey& key);

  // Drops unsealed blocks past their time and leases past theirs, then the least recently used
  // leaves while more than high_watermark of the budget is in use, so that most puts find a free
  // slot and do not evict themselves. Called every second or so.
  void Expire();

  // Takes slots on the GPU for those of these blocks that are sealed and have no copy there, nor
  // are being promoted, as far as there is room or it can be made from idle copies.
  [[nodiscard]] std::vector<PromotionHandle> ReservePromotions(std::span<const BlockKey> keys);
  // Pins up to `limit` sealed blocks whose host bytes are stale, those that wait longest first,
  // which is no use of them. They come again until MarkWritten says of block `i` of these pins that
  // all its bytes were written to bytes().
  [[nodiscard]] ReadPins PinStale(size_t limit);
  // Whether the host bytes of block `i` of these pins are stale now. NOT_FOUND: it was deleted, or
  // lost with the GPU, since it was pinned; another may have its key.
  [[nodiscard]] absl::StatusOr<bool> IsStale(const ReadPins& pins, size_t i) const;
  void MarkWritten(const ReadPins& stale, size_t i);
  // The GPU failed: nothing has a copy from now on, and nothing gets one. Blocks with stale host
  // bytes are lost: they go as by Discard, with their subtrees. Returns how many. Pins that show
  // addresses on the GPU keep them; nobody else gets these.
  size_t CloseGpu();

  struct Stats {
    size_t budget_bytes = 0;
    size_t page_bytes = 0;  // taken from the budget by slab pages
    size_t used_bytes = 0;  // slots in use
    size_t pinned_bytes = 0;
    size_t leased_bytes = 0;
    uint64_t blocks = 0;  // with a slot, sealed or not
    uint64_t sealed_blocks = 0;
    uint64_t leases = 0;
    uint64_t evicted_total = 0;
    uint64_t expired_total = 0;
    uint64_t deleted_total = 0;
    uint64_t discarded_total = 0;  // integrity failures

    size_t gpu_budget_bytes = 0;  // this and the next four are 0 without a GPU, or once closed
    size_t gpu_page_bytes = 0;
    size_t gpu_used_bytes = 0;
    uint64_t gpu_blocks = 0;    // with a slot there too
    uint64_t stale_blocks = 0;  // whose host bytes are still to be written
    uint64_t promoted_total = 0;
    uint64_t demoted_total = 0;       // lost their copy to make room for another
    uint64_t gpu_fallback_total = 0;  // wanted a copy when they were put, and got none
    uint64_t gpu_lost_total = 0;      // dropped by CloseGpu
  };
  [[nodiscard]] Stats GetStats() const;
  [[nodiscard]] size_t budget_bytes() const;
  [[nodiscard]] EventLog& events();

 private:
  const std::unique_ptr<PoolState> state_;
};

}  // namespace sketchkv
