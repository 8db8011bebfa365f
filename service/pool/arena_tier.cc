#include "service/pool/arena_tier.h"

#include <algorithm>
#include <cstdint>
#include <iterator>

#include "absl/status/status.h"
#include "absl/strings/str_format.h"

namespace sketchkv {
namespace {

constexpr size_t kAlignment = SlabAllocator::kPageAlignment;

std::vector<std::span<std::byte>> Aligned(const std::vector<std::span<std::byte>>& chunks) {
  std::vector<std::span<std::byte>> aligned;
  for (const std::span<std::byte> chunk : chunks) {
    const size_t before = -reinterpret_cast<uintptr_t>(chunk.data()) % kAlignment;
    if (chunk.size() < before + kAlignment) continue;
    aligned.push_back(chunk.subspan(before, (chunk.size() - before) / kAlignment * kAlignment));
  }
  return aligned;
}

size_t TotalBytes(const std::vector<std::span<std::byte>>& chunks) {
  size_t bytes = 0;
  for (const std::span<std::byte> chunk : chunks) bytes += chunk.size();
  return bytes;
}

}  // namespace

ArenaTier::ArenaTier(const std::vector<std::span<std::byte>>& chunks)
    : chunks_(Aligned(chunks)), slabs_(TotalBytes(chunks_)) {
  for (size_t i = 0; i < chunks_.size(); ++i) free_.emplace(Place{i, 0}, chunks_[i].size());
}

bool ArenaTier::CanHold(size_t slot_bytes) const {
  return std::ranges::any_of(chunks_, [&](const std::span<std::byte> chunk) {
    return slot_bytes <= chunk.size() && PageBytes(slot_bytes) <= chunk.size();
  });
}

bool ArenaTier::HasRoom(size_t slot_bytes) const {
  return slabs_.HasFreeSlot(slot_bytes) || FirstFit(PageBytes(slot_bytes)) != free_.end();
}

absl::StatusOr<SlotId> ArenaTier::Allocate(size_t slot_bytes) {
  const bool needs_page = !slabs_.HasFreeSlot(slot_bytes);
  const size_t bytes = PageBytes(slot_bytes);
  const auto range = needs_page ? FirstFit(bytes) : free_.end();
  if (needs_page && range == free_.end()) {
    return absl::ResourceExhaustedError(absl::StrFormat(
        "slot_bytes %d: no chunk has a page of %d bytes free; page_bytes %d of budget_bytes %d are "
        "taken",
        slot_bytes, bytes, slabs_.page_bytes(), slabs_.budget_bytes()));
  }
  const SlotId id = slabs_.Allocate(slot_bytes)->id;
  if (!needs_page) return id;

  const auto [place, free_bytes] = *range;
  free_.erase(range);
  if (free_bytes > bytes)
    free_.emplace(Place{place.first, place.second + bytes}, free_bytes - bytes);
  if (id.page >= pages_.size()) pages_.resize(id.page + 1);
  pages_[id.page] = Page{place, bytes};
  return id;
}

void ArenaTier::Free(SlotId id) {
  if (slabs_.Free(id)) Release(pages_[id.page]);
}

std::span<std::byte> ArenaTier::View(SlotId id) const {
  const auto [chunk, offset] = pages_[id.page].place;
  const size_t slot_bytes = slabs_.SlotBytes(id.page);
  return chunks_[chunk].subspan(offset + id.slot * slot_bytes, slot_bytes);
}

Tier::Stats ArenaTier::GetStats() const {
  return {slabs_.budget_bytes(), slabs_.page_bytes(), slabs_.used_bytes()};
}

ArenaTier::FreeRanges::const_iterator ArenaTier::FirstFit(size_t bytes) const {
  return std::find_if(free_.begin(), free_.end(),
                      [bytes](const auto& range) { return range.second >= bytes; });
}

void ArenaTier::Release(const Page& page) {
  const auto touch = [](FreeRanges::const_iterator a, FreeRanges::const_iterator b) {
    return a->first.first == b->first.first && a->first.second + a->second == b->first.second;
  };
  const auto freed = free_.emplace(page.place, page.bytes).first;
  if (const auto next = std::next(freed); next != free_.end() && touch(freed, next)) {
    freed->second += next->second;
    free_.erase(next);
  }
  if (freed == free_.begin()) return;
  if (const auto before = std::prev(freed); touch(before, freed)) {
    before->second += freed->second;
    free_.erase(freed);
  }
}

}  // namespace sketchkv
