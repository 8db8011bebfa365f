#pragma once

#include <cstdint>
#include <map>
#include <optional>

namespace sketchkv::client {

// Which bytes of [0, size) are taken: arithmetic on offsets, first fit. Not thread-safe.
class RegionAllocator {
 public:
  // Offsets and sizes are multiples of this.
  static constexpr uint64_t kAlignment = 64;

  explicit RegionAllocator(uint64_t size);

  // The offset of `bytes` free bytes (rounded up), which are taken now; none: no hole is that
  // large.
  [[nodiscard]] std::optional<uint64_t> Allocate(uint64_t bytes);
  // Gives back what Allocate returned.
  void Free(uint64_t offset);
  // The offset of the region that holds all of [offset, offset + bytes); none: there is none.
  [[nodiscard]] std::optional<uint64_t> Find(uint64_t offset, uint64_t bytes) const;

 private:
  // Offset -> bytes. No two holes touch.
  std::map<uint64_t, uint64_t> holes_;
  std::map<uint64_t, uint64_t> taken_;
};

}  // namespace sketchkv::client
