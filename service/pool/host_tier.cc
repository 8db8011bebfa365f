#include "service/pool/host_tier.h"

#include <sys/mman.h>

#include <cerrno>
#include <cstring>

#include "absl/status/status.h"
#include "absl/strings/str_format.h"

namespace sketchkv {
namespace {

constexpr size_t kHugeBytes = size_t{2} << 20;

// Null with errno. Aligned for huge pages and asking for them: attention hops from slot to slot,
// and with small pages it would wait for the page tables. Where the system has none, it does.
std::byte* MapPage(size_t bytes) {
  void* const mapped =
      mmap(nullptr, bytes + kHugeBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) return nullptr;
  auto* const begin = static_cast<std::byte*>(mapped);
  const size_t before = -reinterpret_cast<uintptr_t>(begin) % kHugeBytes;
  if (before > 0) munmap(begin, before);
  if (before < kHugeBytes) munmap(begin + before + bytes, kHugeBytes - before);
  if (bytes >= kHugeBytes) (void)madvise(begin + before, bytes, MADV_HUGEPAGE);
  return begin + before;
}

}  // namespace

HostTier::~HostTier() {
  for (const Mapping& mapping : mappings_) {
    if (mapping.base != nullptr) munmap(mapping.base, mapping.bytes);
  }
}

absl::StatusOr<SlotId> HostTier::Allocate(size_t slot_bytes) {
  const auto allocation = slabs_.Allocate(slot_bytes);
  if (!allocation.has_value()) {
    return absl::ResourceExhaustedError(
        absl::StrFormat("slot_bytes %d: page_bytes %d of budget_bytes %d are taken", slot_bytes,
                        slabs_.page_bytes(), slabs_.budget_bytes()));
  }
  if (!allocation->new_page) return allocation->id;

  const size_t bytes = slabs_.PageBytes(slot_bytes);
  std::byte* const base = MapPage(bytes);
  if (base == nullptr) {
    const int error = errno;
    slabs_.Free(allocation->id);
    return absl::ResourceExhaustedError(
        absl::StrFormat("the system refuses %d bytes for a page: %s", bytes, std::strerror(error)));
  }
  if (allocation->id.page >= mappings_.size()) mappings_.resize(allocation->id.page + 1);
  mappings_[allocation->id.page] = Mapping{base, bytes};
  return allocation->id;
}

void HostTier::Free(SlotId id) {
  if (!slabs_.Free(id)) return;
  Mapping& mapping = mappings_[id.page];
  munmap(mapping.base, mapping.bytes);
  mapping = Mapping();
}

std::span<std::byte> HostTier::View(SlotId id) const {
  const size_t slot_bytes = slabs_.SlotBytes(id.page);
  return {mappings_[id.page].base + id.slot * slot_bytes, slot_bytes};
}

Tier::Stats HostTier::GetStats() const {
  return {slabs_.budget_bytes(), slabs_.page_bytes(), slabs_.used_bytes()};
}

}  // namespace sketchkv
