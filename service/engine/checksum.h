#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "absl/status/status.h"
#include "kernels/base/mutex.h"
#include "kernels/base/xxh3.h"
#include "service/engine/payload.h"
#include "service/pool/block.h"

namespace sketchkv {

// Of a payload on the wire: XXH3, 64 bits, seed 0.
[[nodiscard]] uint64_t PayloadChecksum(const Payload& payload);

// DATA_LOSS when a payload has not the checksum that came with it.
[[nodiscard]] absl::Status CheckPayload(uint64_t said, uint64_t found);

// A payload's checksum, made piece by piece. Thread-safe.
class SteppedChecksum {
 public:
  // `payload` outlives it.
  explicit SteppedChecksum(const Payload& payload) : payload_(payload) {}
  // Adds what comes before `end` and is not in it yet.
  void AddUpTo(uint64_t end);
  // Of the whole payload.
  [[nodiscard]] uint64_t Finish();

 private:
  const Payload& payload_;
  Mutex mu_;
  RunningXxh3 checksum_ SKETCHKV_GUARDED_BY(mu_);
  uint64_t end_ SKETCHKV_GUARDED_BY(mu_) = 0;  // of what is in it
};

// Of stored cells, bound to the block they belong to: the same bytes under another key, layer, head
// or length have another checksum, so swapped records are found like flipped bits.
class CellChecksummer {
 public:
  CellChecksummer(const BlockKey& key, uint32_t num_tokens);
  // Of the checksum of a cell, the lower half of XXH3, 64 bits.
  [[nodiscard]] uint64_t SeedOf(uint32_t layer, uint32_t head) const {
    return block_seed_ ^ (uint64_t{layer} << 32 | head);
  }
  [[nodiscard]] uint32_t Of(uint32_t layer, uint32_t head, std::span<const std::byte> cell) const;

 private:
  uint64_t block_seed_;
};

}  // namespace sketchkv
