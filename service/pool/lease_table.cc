#include "service/pool/lease_table.h"

#include <sys/random.h>

#include <random>
#include <utility>

namespace sketchkv {
namespace {

// Ids are not to be guessed: who knows one may release the lease.
uint64_t RandomId() {
  uint64_t id = 0;
  if (getrandom(&id, sizeof(id), 0) != static_cast<ssize_t>(sizeof(id))) {
    std::random_device device;
    id = uint64_t{device()} << 32 | device();
  }
  return id;
}

}  // namespace

size_t LeaseTable::LeasedBytesWith(const std::vector<Entry*>& blocks, size_t slot_bytes) const {
  size_t bytes = leased_bytes_;
  for (const Entry* block : blocks) {
    if (!leases_of_.contains(block)) bytes += slot_bytes;
  }
  return bytes;
}

uint64_t LeaseTable::Add(Lease lease) {
  num_entries_ += lease.blocks.size();
  for (const Entry* block : lease.blocks) {
    if (leases_of_[block]++ == 0) leased_bytes_ += lease.slot_bytes;
  }
  uint64_t id = RandomId();
  while (id == 0 || leases_.contains(id)) id = RandomId();
  leases_.emplace(id, std::move(lease));
  return id;
}

LeaseTable::Lease* LeaseTable::Find(uint32_t tenant, uint64_t id, TimePoint now) {
  const auto it = leases_.find(id);
  if (it == leases_.end() || it->second.tenant != tenant || it->second.end <= now) return nullptr;
  return &it->second;
}

LeaseTable::Lease LeaseTable::Remove(uint64_t id) {
  const auto it = leases_.find(id);
  Lease lease = std::move(it->second);
  leases_.erase(it);
  Uncount(lease);
  return lease;
}

std::vector<LeaseTable::Lease> LeaseTable::RemoveEnded(TimePoint now) {
  std::vector<uint64_t> ended;
  for (const auto& [id, lease] : leases_) {
    if (lease.end <= now) ended.push_back(id);
  }
  std::vector<Lease> removed;
  removed.reserve(ended.size());
  for (const uint64_t id : ended) removed.push_back(Remove(id));
  return removed;
}

void LeaseTable::Uncount(const Lease& lease) {
  num_entries_ -= lease.blocks.size();
  for (const Entry* block : lease.blocks) {
    const auto it = leases_of_.find(block);
    if (--it->second > 0) continue;
    leases_of_.erase(it);
    leased_bytes_ -= lease.slot_bytes;
  }
}

}  // namespace sketchkv
