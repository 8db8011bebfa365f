#include "service/gpu/block_tables.h"

#include <limits>

#include "service/gpu/lane.h"

namespace sketchkv::gpu {

absl::StatusOr<std::unique_ptr<BlockTables>> BlockTables::Create(size_t num_lanes) {
  std::unique_ptr<BlockTables> tables(new BlockTables);
  tables->first_place_ = OfLane(num_lanes);
  const size_t blocks = tables->first_place_ + size_t{kPlaces} * kPlaceBlocks;
  SKETCHKV_ASSIGN_OR_RETURN(tables->memory_, DeviceBuffer::Create(blocks * sizeof(void*)));
  MutexLock lock(&tables->mu_);
  tables->kept_.resize(kPlaces);
  return tables;
}

uint32_t BlockTables::OfLane(size_t lane) {
  return static_cast<uint32_t>(lane * Lane::kTableBlocks);
}

// An address may be used again by others; an owner that is still there is the same.
bool BlockTables::Kept::Is(const GpuBlocks& blocks) const {
  return slots == blocks.slots.data() && size == blocks.slots.size() &&
         !owner.owner_before(blocks.owner) && !blocks.owner.owner_before(owner);
}

std::optional<BlockTables::Place> BlockTables::Find(const GpuBlocks& blocks) {
  if (!blocks.lasting || blocks.slots.size() > kPlaceBlocks) return std::nullopt;
  MutexLock lock(&mu_);
  uint32_t coldest = kPlaces;
  uint64_t last_use = std::numeric_limits<uint64_t>::max();
  for (uint32_t i = 0; i < kPlaces; ++i) {
    Kept& kept = kept_[i];
    const Place place{.number = i, .first_block = first_place_ + i * kPlaceBlocks};
    if (kept.Is(blocks)) {
      if (!kept.ready) return std::nullopt;  // somebody fills it just now
      ++kept.users;
      kept.last_use = ++uses_;
      return place;
    }
    if (kept.users > 0) continue;
    const uint64_t use = kept.owner.expired() ? 0 : kept.last_use;
    if (use < last_use) coldest = i, last_use = use;
  }
  if (coldest == kPlaces) return std::nullopt;
  kept_[coldest] = {.owner = blocks.owner,
                    .slots = blocks.slots.data(),
                    .size = blocks.slots.size(),
                    .users = 1,
                    .last_use = ++uses_};
  return Place{
      .number = coldest, .first_block = first_place_ + coldest * kPlaceBlocks, .fill = true};
}

void BlockTables::Release(const Place& place, bool filled) {
  MutexLock lock(&mu_);
  Kept& kept = kept_[place.number];
  --kept.users;
  if (!place.fill) return;
  if (filled) {
    kept.ready = true;
  } else {
    kept = Kept();
  }
}

}  // namespace sketchkv::gpu
