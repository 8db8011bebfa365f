#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "kernels/base/clock.h"
#include "service/pool/block_pool.h"
#include "service/pool/entry.h"

namespace sketchkv {

// Leases and the bytes they pin, a block under several leases counted once. Not thread-safe; the
// pool calls it under its mutex. What it hands out must be destroyed without that mutex.
class LeaseTable {
 public:
  struct Lease {
    uint32_t tenant = 0;
    TimePoint end;
    uint64_t last_use = 0;       // a tick; given to the blocks when the lease ends, see README.md
    std::vector<Entry*> blocks;  // root first
    size_t slot_bytes = 0;       // of each: a chain is of one model
    std::shared_ptr<const ReadPins> chain = nullptr;  // pins `blocks`
    TimePoint pinned_at;                              // when `chain` was made
    uint64_t gpu_changes = 0;                         // GpuCopies::changes() then
  };

  // What leases would pin if these blocks were leased too.
  [[nodiscard]] size_t LeasedBytesWith(const std::vector<Entry*>& blocks, size_t slot_bytes) const;
  // Returns the lease's random id, never 0.
  uint64_t Add(Lease lease);
  // Null for a lease that is not there, is another tenant's or has ended at `now`.
  [[nodiscard]] Lease* Find(uint32_t tenant, uint64_t id, TimePoint now);
  [[nodiscard]] Lease Remove(uint64_t id);
  [[nodiscard]] std::vector<Lease> RemoveEnded(TimePoint now);

  // Blocks of all leases, one under several counted as often: what the table itself holds.
  [[nodiscard]] size_t num_entries() const { return num_entries_; }
  [[nodiscard]] size_t leased_bytes() const { return leased_bytes_; }
  [[nodiscard]] size_t size() const { return leases_.size(); }

 private:
  void Uncount(const Lease& lease);

  absl::flat_hash_map<uint64_t, Lease> leases_;
  absl::flat_hash_map<const Entry*, uint32_t> leases_of_;  // of blocks with at least one
  size_t leased_bytes_ = 0;
  size_t num_entries_ = 0;
};

}  // namespace sketchkv
