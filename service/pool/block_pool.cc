#include "service/pool/block_pool.h"

#include <algorithm>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_format.h"
#include "kernels/base/status_macros.h"
#include "service/pool/pool_state.h"

namespace sketchkv {
namespace {

// Of all leases together: their tables are memory too, however often they name the same block.
constexpr size_t kMaxLeaseEntries = size_t{4} << 20;

// Of one Expire, all of it under the mutex.
constexpr size_t kMaxTrimmedBlocks = 4096;

absl::Status NotFound(const BlockKey& key) {
  return absl::NotFoundError(absl::StrFormat("block %s is not found", key.hash.ToHex()));
}

absl::Status LeaseNotFound(uint64_t id) {
  return absl::NotFoundError(absl::StrFormat("lease_id %d is unknown, released or expired", id));
}

absl::Status CheckTtl(std::chrono::milliseconds ttl) {
  if (ttl.count() > 0) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrFormat("lease ttl: %d ms, must be at least 1 ms", ttl.count()));
}

}  // namespace

BlockPool::BlockPool(const Options& options, const Clock* clock, std::unique_ptr<Tier> gpu)
    : state_(std::make_unique<PoolState>(options, clock, std::move(gpu))) {}

BlockPool::~BlockPool() {
  // Leases hold pins, and those end by taking the mutex.
  std::vector<LeaseTable::Lease> leases;
  MutexLock lock(&state_->mu);
  leases = state_->leases.RemoveEnded(TimePoint::max());
}

absl::StatusOr<WriteHandle> BlockPool::Reserve(const ReserveRequest& request) {
  return state_->Reserve(request);
}

absl::StatusOr<ReadPins> BlockPool::Pin(const BlockKey& key) { return PinAll({&key, 1}); }

absl::StatusOr<ReadPins> BlockPool::PinAll(std::span<const BlockKey> keys) {
  std::vector<Entry*> blocks;
  blocks.reserve(keys.size());
  MutexLock lock(&state_->mu);
  for (const BlockKey& key : keys) {
    Entry* const entry = state_->FindFound(key);
    if (entry == nullptr) return NotFound(key);
    blocks.push_back(entry);
  }
  return state_->Pin(std::move(blocks));
}

absl::StatusOr<ReadPins> BlockPool::PinChain(const BlockKey& tip) {
  MutexLock lock(&state_->mu);
  SKETCHKV_ASSIGN_OR_RETURN(std::vector<Entry*> chain, state_->ResolveChain(tip));
  return state_->Pin(std::move(chain));
}

ReadPins BlockPool::PinNext(uint64_t* cursor, size_t limit) {
  MutexLock lock(&state_->mu);
  return state_->Hold(state_->table.NextSealed(cursor, limit));
}

size_t BlockPool::LookupPrefix(uint32_t tenant, const Fingerprint& fingerprint,
                               std::span<const BlockHash> chain) {
  MutexLock lock(&state_->mu);
  const uint64_t tick = state_->table.NextTick();
  Entry* parent = nullptr;
  for (size_t i = 0; i < chain.size(); ++i) {
    Entry* const entry = state_->FindFound({tenant, fingerprint, chain[i]});
    if (entry == nullptr || entry->parent != parent) return i;
    state_->table.Touch(entry, tick);
    parent = entry;
  }
  return chain.size();
}

absl::StatusOr<BlockPool::Lease> BlockPool::AcquireLease(const BlockKey& tip,
                                                         std::chrono::milliseconds ttl) {
  SKETCHKV_RETURN_IF_ERROR(CheckTtl(ttl));
  const Options& options = state_->options;
  const Lease granted{0, std::min(ttl, options.max_lease_ttl)};
  const auto limit =
      static_cast<size_t>(options.max_leased_fraction * static_cast<double>(options.budget_bytes));
  const TimePoint now = state_->clock->Now();
  std::vector<LeaseTable::Lease> ended;

  MutexLock lock(&state_->mu);
  SKETCHKV_ASSIGN_OR_RETURN(std::vector<Entry*> chain, state_->ResolveChain(tip));
  ended = state_->leases.RemoveEnded(now);
  for (const LeaseTable::Lease& lease : ended) state_->TouchLeased(lease);
  const size_t slot_bytes = state_->table.Bytes(chain.front()).size();
  const size_t leased = state_->leases.LeasedBytesWith(chain, slot_bytes);
  if (leased > limit) {
    return absl::ResourceExhaustedError(
        absl::StrFormat("leases would pin %d bytes, at most %d of budget_bytes %d may be leased",
                        leased, limit, options.budget_bytes));
  }
  if (state_->leases.num_entries() + chain.size() > kMaxLeaseEntries) {
    return absl::ResourceExhaustedError(
        absl::StrFormat("leases would hold %d blocks, the same ones counted again, of at most %d",
                        state_->leases.num_entries() + chain.size(), kMaxLeaseEntries));
  }
  LeaseTable::Lease lease{.tenant = tip.tenant,
                          .end = now + granted.ttl,
                          .last_use = state_->table.NextTick(),
                          .blocks = chain,
                          .slot_bytes = slot_bytes,
                          .pinned_at = now,
                          .gpu_changes = state_->table.copies().changes()};
  lease.chain = std::make_shared<const ReadPins>(state_->Pin(std::move(chain)));
  return Lease{state_->leases.Add(std::move(lease)), granted.ttl};
}

absl::StatusOr<BlockPool::Lease> BlockPool::RenewLease(uint32_t tenant, uint64_t id,
                                                       std::chrono::milliseconds ttl) {
  SKETCHKV_RETURN_IF_ERROR(CheckTtl(ttl));
  const Lease granted{id, std::min(ttl, state_->options.max_lease_ttl)};
  const TimePoint now = state_->clock->Now();
  MutexLock lock(&state_->mu);
  LeaseTable::Lease* const lease = state_->leases.Find(tenant, id, now);
  // Deleted blocks are kept for who has them, but not for ever.
  if (lease == nullptr || lease->blocks.back()->hidden) return LeaseNotFound(id);
  lease->end = now + granted.ttl;
  return granted;
}

absl::Status BlockPool::ReleaseLease(uint32_t tenant, uint64_t id) {
  const TimePoint now = state_->clock->Now();
  LeaseTable::Lease released;  // goes after the lock
  MutexLock lock(&state_->mu);
  if (state_->leases.Find(tenant, id, now) == nullptr) return LeaseNotFound(id);
  released = state_->leases.Remove(id);
  state_->TouchLeased(released);
  return absl::OkStatus();
}

absl::StatusOr<std::shared_ptr<const ReadPins>> BlockPool::LeasedChain(uint32_t tenant,
                                                                       uint64_t id) {
  const TimePoint now = state_->clock->Now();
  std::shared_ptr<const ReadPins> outdated;  // goes after the lock
  MutexLock lock(&state_->mu);
  LeaseTable::Lease* const lease = state_->leases.Find(tenant, id, now);
  if (lease != nullptr) outdated = state_->RefreshChain(lease, now);
  // A damaged block takes its subtree along, and the tip is in it.
  if (lease == nullptr || lease->blocks.back()->damaged) return LeaseNotFound(id);
  lease->last_use = state_->table.NextTick();
  return lease->chain;
}

absl::StatusOr<size_t> BlockPool::Delete(const BlockKey& key) {
  MutexLock lock(&state_->mu);
  Entry* const entry = state_->table.FindBlock(key);
  if (entry == nullptr) return NotFound(key);
  return state_->HideSubtree(entry);
}

size_t BlockPool::Clear(uint32_t tenant, const Fingerprint& fingerprint) {
  MutexLock lock(&state_->mu);
  size_t count = 0;
  for (Entry* top : state_->table.index().Tops(tenant, fingerprint)) {
    count += state_->HideSubtree(top);
  }
  return count;
}

void BlockPool::Discard(const BlockKey& key) {
  MutexLock lock(&state_->mu);
  Entry* const entry = state_->table.FindBlock(key);
  if (entry == nullptr) return;
  state_->DiscardSubtree(entry);
  ++state_->discarded_total;
}

std::vector<PromotionHandle> BlockPool::ReservePromotions(std::span<const BlockKey> keys) {
  return state_->ReservePromotions(keys);
}

ReadPins BlockPool::PinStale(size_t limit) {
  MutexLock lock(&state_->mu);
  return state_->Hold(state_->table.copies().Stale(limit));
}

absl::StatusOr<bool> BlockPool::IsStale(const ReadPins& pins, size_t i) const {
  return state_->IsStale(pins, i);
}

void BlockPool::MarkWritten(const ReadPins& stale, size_t i) { state_->MarkWritten(stale, i); }

size_t BlockPool::CloseGpu() {
  MutexLock lock(&state_->mu);
  return state_->CloseGpu();
}

void BlockPool::Expire() {
  const TimePoint now = state_->clock->Now();
  std::vector<LeaseTable::Lease> ended;  // go after the lock
  MutexLock lock(&state_->mu);
  ended = state_->leases.RemoveEnded(now);
  for (const LeaseTable::Lease& lease : ended) state_->TouchLeased(lease);
  state_->ExpireUnsealed(now);
  state_->uses.Note(now, state_->table.last_tick());
  const auto watermark = static_cast<size_t>(state_->options.high_watermark *
                                             static_cast<double>(state_->options.budget_bytes));
  state_->table.Trim(watermark, kMaxTrimmedBlocks);
}

BlockPool::Stats BlockPool::GetStats() const {
  MutexLock lock(&state_->mu);
  const BlockTable::Stats table = state_->table.GetStats();
  Stats stats;
  stats.budget_bytes = table.tier.budget_bytes;
  stats.page_bytes = table.tier.page_bytes;
  stats.used_bytes = table.tier.used_bytes;
  stats.pinned_bytes = table.pinned_bytes;
  stats.leased_bytes = state_->leases.leased_bytes();
  stats.blocks = table.blocks;
  stats.sealed_blocks = table.sealed_blocks;
  stats.leases = state_->leases.size();
  stats.evicted_total = table.evicted_total;
  stats.expired_total = state_->expired_total;
  stats.deleted_total = state_->deleted_total;
  stats.discarded_total = state_->discarded_total;
  stats.gpu_budget_bytes = table.gpu.tier.budget_bytes;
  stats.gpu_page_bytes = table.gpu.tier.page_bytes;
  stats.gpu_used_bytes = table.gpu.tier.used_bytes;
  stats.gpu_blocks = table.gpu.blocks;
  stats.stale_blocks = table.gpu.stale_blocks;
  stats.promoted_total = table.gpu.promoted_total;
  stats.demoted_total = table.gpu.demoted_total;
  stats.gpu_fallback_total = table.gpu_fallback_total;
  stats.gpu_lost_total = state_->gpu_lost_total;
  return stats;
}

size_t BlockPool::budget_bytes() const { return state_->options.budget_bytes; }

EventLog& BlockPool::events() { return state_->events; }

}  // namespace sketchkv
