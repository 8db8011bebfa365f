// Copies for blocks that are stored already: from ReservePromotions over the handle to Commit.

#include <utility>

#include "service/pool/pool_state.h"

namespace sketchkv {

std::vector<PromotionHandle> PoolState::ReservePromotions(std::span<const BlockKey> keys) {
  const TimePoint now = clock->Now();
  std::vector<PromotionHandle> handles;
  MutexLock lock(&mu);
  uses.Note(now, table.last_tick());
  const uint64_t newest_dropped = uses.NewestOld(now);
  for (const BlockKey& key : keys) {
    Entry* const entry = table.FindBlock(key);
    if (entry == nullptr || !entry->sealed) continue;
    const std::span<const std::byte> bytes = table.Bytes(entry);
    const auto slot = table.copies().BeginPromotion(entry, bytes.size(), newest_dropped);
    if (!slot.has_value()) continue;
    table.AddRef(entry);
    handles.push_back(PromotionHandle(std::make_unique<PromotionHandle::Promotion>(
        PromotionHandle::Promotion{this, entry, *slot, bytes, table.copies().View(*slot)})));
  }
  return handles;
}

bool PoolState::EndPromotion(const PromotionHandle::Promotion& promotion, bool copied) {
  MutexLock lock(&mu);
  const bool attached = table.copies().EndPromotion(promotion.entry, promotion.slot, copied);
  table.DropRef(promotion.entry);
  return attached;
}

PromotionHandle::PromotionHandle(std::unique_ptr<Promotion> promotion)
    : promotion_(std::move(promotion)) {}
PromotionHandle::PromotionHandle(PromotionHandle&&) noexcept = default;

PromotionHandle& PromotionHandle::operator=(PromotionHandle&& other) noexcept {
  std::swap(promotion_, other.promotion_);
  PromotionHandle(std::move(other));  // ends what was ours now, not when `other` goes
  return *this;
}

PromotionHandle::~PromotionHandle() {
  if (promotion_ != nullptr) promotion_->pool->EndPromotion(*promotion_, /*copied=*/false);
}

BlockView PromotionHandle::block() const {
  const Entry& entry = *promotion_->entry;
  return {.key = &entry.key,
          .bytes = promotion_->bytes,
          .cell_checksums = entry.cells->checksums(),
          .num_tokens = entry.cells->num_tokens};
}
std::span<std::byte> PromotionHandle::gpu_slot() const { return promotion_->gpu_slot; }

bool PromotionHandle::Commit() {
  const std::unique_ptr<Promotion> promotion = std::move(promotion_);
  return promotion->pool->EndPromotion(*promotion, /*copied=*/true);
}

}  // namespace sketchkv
