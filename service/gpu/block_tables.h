#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/base/mutex.h"
#include "service/engine/gpu.h"
#include "service/gpu/buffer.h"

namespace sketchkv::gpu {

// Where the blocks of sequences lie, in the card's memory: one array of pointers. Its first part
// belongs to the lanes, for tables of one batch each; the rest keeps the tables of chains that are
// asked for again and again. Thread-safe.
class BlockTables {
 public:
  [[nodiscard]] static absl::StatusOr<std::unique_ptr<BlockTables>> Create(size_t num_lanes);

  [[nodiscard]] const uint8_t* const* base() const {
    return reinterpret_cast<const uint8_t* const*>(memory_.data());
  }
  // The card's copy of a pointer of the array.
  [[nodiscard]] std::byte* device(uint32_t index) const {
    return memory_.data() + size_t{index} * sizeof(void*);
  }
  // First of the part of a lane, which has Lane::kTableBlocks.
  [[nodiscard]] static uint32_t OfLane(size_t lane);

  // A place that is kept. Whoever is to fill it does so before it gives it back; until then nobody
  // else gets it.
  struct Place {
    uint32_t number = 0;
    uint32_t first_block = 0;
    bool fill = false;
  };
  // None when this table is not worth keeping, too long, or all places are in use.
  [[nodiscard]] std::optional<Place> Find(const GpuBlocks& blocks);
  // `filled`: the table is there, and the stream is done with it.
  void Release(const Place& place, bool filled);

 private:
  static constexpr uint32_t kPlaces = 128;
  static constexpr uint32_t kPlaceBlocks = 16384;

  struct Kept {
    std::weak_ptr<const void> owner;
    const void* slots = nullptr;
    size_t size = 0;
    bool ready = false;
    uint32_t users = 0;
    uint64_t last_use = 0;

    [[nodiscard]] bool Is(const GpuBlocks& blocks) const;
  };

  BlockTables() = default;

  DeviceBuffer memory_;
  uint32_t first_place_ = 0;
  Mutex mu_;
  uint64_t uses_ SKETCHKV_GUARDED_BY(mu_) = 0;
  std::vector<Kept> kept_ SKETCHKV_GUARDED_BY(mu_);
};

}  // namespace sketchkv::gpu
