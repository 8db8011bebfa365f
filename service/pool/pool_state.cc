#include "service/pool/pool_state.h"

#include <algorithm>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_format.h"
#include "service/pool/host_tier.h"

namespace sketchkv {
namespace {

// Between two times that a lease's chain is pinned anew: that walks over thousands of blocks.
constexpr std::chrono::milliseconds kMinRefreshInterval{50};

}  // namespace

PoolState::PoolState(const BlockPool::Options& pool_options, const Clock* pool_clock,
                     std::unique_ptr<Tier> gpu)
    : options(pool_options),
      clock(pool_clock),
      events(pool_options.event_capacity),
      table(std::make_unique<HostTier>(pool_options.budget_bytes), std::move(gpu), &events),
      uses(pool_options.gpu_promote_idle) {}

Entry* PoolState::FindFound(const BlockKey& key) const {
  Entry* const entry = table.FindBlock(key);
  return entry != nullptr && entry->found ? entry : nullptr;
}

absl::StatusOr<std::vector<Entry*>> PoolState::ResolveChain(const BlockKey& tip) const {
  Entry* const entry = table.index().Find(tip);
  const Entry* missing = nullptr;
  std::vector<Entry*> chain;
  for (Entry* at = entry; at != nullptr; at = at->parent) {
    if (!at->sealed) missing = at;  // the last one seen is nearest to the root
    chain.push_back(at);
  }
  if (entry == nullptr || missing != nullptr) {
    const BlockHash& hash = missing == nullptr ? tip.hash : missing->key.hash;
    return absl::NotFoundError(absl::StrFormat("block %s, the first missing of the chain to %s",
                                               hash.ToHex(), tip.hash.ToHex()));
  }
  std::reverse(chain.begin(), chain.end());
  return chain;
}

ReadPins PoolState::Pin(std::vector<Entry*> blocks) {
  const uint64_t tick = table.NextTick();
  for (Entry* entry : blocks) table.Touch(entry, tick);
  return Hold(std::move(blocks));
}

ReadPins PoolState::Hold(std::vector<Entry*> blocks) {
  auto pinned = std::make_unique<ReadPins::Pinned>();
  pinned->pool = this;
  pinned->bytes.reserve(blocks.size());
  pinned->gpu.reserve(blocks.size());
  pinned->host_stale.reserve(blocks.size());
  for (Entry* entry : blocks) {
    table.AddRef(entry);
    pinned->bytes.push_back(table.Bytes(entry));
    pinned->gpu.push_back(table.copies().View(entry).data());
    pinned->host_stale.push_back(entry->host_stale != 0);
    pinned->any_on_gpu |= entry->on_gpu != 0;
    pinned->any_host_stale |= entry->host_stale != 0;
    pinned->all_on_both &= entry->on_gpu && !entry->host_stale;
  }
  pinned->blocks = std::move(blocks);
  return ReadPins(std::move(pinned));
}

void PoolState::Unpin(const std::vector<Entry*>& blocks) {
  MutexLock lock(&mu);
  for (Entry* entry : blocks) table.DropRef(entry);
}

absl::StatusOr<bool> PoolState::IsStale(const ReadPins& pins, size_t i) const {
  MutexLock lock(&mu);
  const Entry* const entry = pins.pinned_->blocks[i];
  if (!entry->hidden) return entry->host_stale != 0;
  return absl::NotFoundError(
      absl::StrFormat("block %s was deleted, or lost with the GPU", entry->key.hash.ToHex()));
}

void PoolState::MarkWritten(const ReadPins& stale, size_t i) {
  MutexLock lock(&mu);
  table.copies().MarkWritten(stale.pinned_->blocks[i]);
}

std::shared_ptr<const ReadPins> PoolState::RefreshChain(LeaseTable::Lease* lease, TimePoint now) {
  const GpuCopies& copies = table.copies();
  const ReadPins::Pinned& shown = *lease->chain->pinned_;
  if (copies.closed()) {
    if (!shown.any_on_gpu) return nullptr;
    // One that was deleted before, and was lost then, is in no subtree any more.
    const bool damaged =
        std::ranges::any_of(lease->blocks, [](const Entry* entry) { return entry->damaged != 0; });
    if (damaged) lease->blocks.back()->damaged = 1;
  } else {
    const bool may_have_more = !shown.all_on_both && copies.changes() != lease->gpu_changes;
    if (!may_have_more || now - lease->pinned_at < kMinRefreshInterval) return nullptr;
  }
  lease->pinned_at = now;
  lease->gpu_changes = copies.changes();
  return std::exchange(lease->chain, std::make_shared<const ReadPins>(Hold(lease->blocks)));
}

void PoolState::TouchLeased(const LeaseTable::Lease& lease) {
  for (Entry* entry : lease.blocks) table.Touch(entry, lease.last_use);
}

size_t PoolState::HideSubtree(Entry* top) {
  const std::vector<Entry*> subtree = BlockIndex::Subtree(top);
  table.Hide(subtree);
  deleted_total += subtree.size();
  return subtree.size();
}

size_t PoolState::DiscardSubtree(Entry* top) {
  for (Entry* below : BlockIndex::Subtree(top)) below->damaged = 1;
  return HideSubtree(top);
}

size_t PoolState::CloseGpu() {
  std::vector<BlockKey> lost;  // keys, since one may go with the subtree of another
  for (Entry* entry : table.copies().Close()) {
    if (entry->hidden) {
      entry->damaged = 1;  // whoever still pins it must not read its bytes
    } else {
      lost.push_back(entry->key);
    }
  }
  size_t count = 0;
  for (const BlockKey& key : lost) {
    if (Entry* const entry = table.FindBlock(key)) count += DiscardSubtree(entry);
  }
  gpu_lost_total += count;
  return count;
}

void PoolState::ExpireUnsealed(TimePoint now) {
  std::vector<Entry*> expired;
  for (const auto& [entry, cells] : table.unsealed()) {
    if (entry->refs == 0 && now - cells.last_part >= options.unsealed_ttl) expired.push_back(entry);
  }
  for (Entry* entry : expired) table.Evict(entry);
  expired_total += expired.size();
}

ReadPins::ReadPins() = default;
ReadPins::ReadPins(std::unique_ptr<Pinned> pinned) : pinned_(std::move(pinned)) {}
ReadPins::ReadPins(ReadPins&&) noexcept = default;

ReadPins& ReadPins::operator=(ReadPins&& other) noexcept {
  std::swap(pinned_, other.pinned_);
  ReadPins(std::move(other));  // unpins what was ours now, not when `other` goes
  return *this;
}

ReadPins::~ReadPins() {
  if (pinned_ != nullptr) pinned_->pool->Unpin(pinned_->blocks);
}

size_t ReadPins::size() const { return pinned_ == nullptr ? 0 : pinned_->blocks.size(); }

BlockView ReadPins::operator[](size_t i) const {
  const Entry* const entry = pinned_->blocks[i];
  return {
      &entry->key,     pinned_->bytes[i],     entry->cells->checksums(), entry->cells->num_tokens,
      pinned_->gpu[i], pinned_->host_stale[i]};
}

std::span<const std::span<const std::byte>> ReadPins::bytes() const {
  if (pinned_ == nullptr) return {};
  return pinned_->bytes;
}

std::span<std::byte* const> ReadPins::gpu() const {
  if (pinned_ == nullptr) return {};
  return pinned_->gpu;
}

bool ReadPins::any_host_stale() const { return pinned_ != nullptr && pinned_->any_host_stale; }

std::span<const uint64_t> ReadPins::token_begin() const {
  static constexpr uint64_t kNone[] = {0};
  if (pinned_ == nullptr) return kNone;
  std::call_once(pinned_->counted, [pinned = pinned_.get()] {
    uint64_t tokens = 0;
    pinned->token_begin.reserve(pinned->blocks.size() + 1);
    for (const Entry* entry : pinned->blocks) {
      pinned->token_begin.push_back(tokens);
      tokens += entry->cells->num_tokens;
    }
    pinned->token_begin.push_back(tokens);
  });
  return pinned_->token_begin;
}

std::span<const size_t> ReadPins::run_ends() const {
  if (pinned_ == nullptr) return {};
  std::call_once(pinned_->divided, [pinned = pinned_.get()] {
    const std::vector<std::byte*>& gpu = pinned->gpu;
    for (size_t end = 1; end <= gpu.size(); ++end) {
      const bool on_gpu = gpu[end - 1] != nullptr;
      const bool last = end == gpu.size() || on_gpu != (gpu[end] != nullptr);
      if (last || (on_gpu && pinned->blocks[end - 1]->cells->is_short()))
        pinned->run_ends.push_back(end);
    }
  });
  return pinned_->run_ends;
}

}  // namespace sketchkv
