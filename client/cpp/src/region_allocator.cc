#include "client/cpp/src/region_allocator.h"

#include <algorithm>
#include <iterator>

#include "kernels/base/checked_math.h"

namespace sketchkv::client {

RegionAllocator::RegionAllocator(uint64_t size) {
  size = size / kAlignment * kAlignment;
  if (size > 0) holes_[0] = size;
}

std::optional<uint64_t> RegionAllocator::Allocate(uint64_t bytes) {
  for (auto hole = holes_.begin(); hole != holes_.end(); ++hole) {
    if (hole->second < bytes) continue;
    const uint64_t offset = hole->first, rest = hole->second;
    const uint64_t taken = RoundUp(std::max<uint64_t>(bytes, 1), kAlignment);
    holes_.erase(hole);
    if (rest > taken) holes_[offset + taken] = rest - taken;
    taken_[offset] = taken;
    return offset;
  }
  return std::nullopt;
}

void RegionAllocator::Free(uint64_t offset) {
  const auto region = taken_.find(offset);
  uint64_t bytes = region->second;
  taken_.erase(region);
  auto next = holes_.lower_bound(offset);
  if (next != holes_.end() && next->first == offset + bytes) {
    bytes += next->second;
    next = holes_.erase(next);
  }
  if (next != holes_.begin()) {
    const auto before = std::prev(next);
    if (before->first + before->second == offset) {
      before->second += bytes;
      return;
    }
  }
  holes_[offset] = bytes;
}

std::optional<uint64_t> RegionAllocator::Find(uint64_t offset, uint64_t bytes) const {
  const auto after = taken_.upper_bound(offset);
  if (after == taken_.begin()) return std::nullopt;
  const auto& [begin, size] = *std::prev(after);
  if (bytes > size || offset - begin > size - bytes) return std::nullopt;
  return begin;
}

}  // namespace sketchkv::client
