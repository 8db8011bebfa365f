#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "service/engine/payload.h"
#include "service/pool/block.h"

namespace sketchkv {

// Of a payload on the wire: XXH3, 64 bits, seed 0.
[[nodiscard]] uint64_t PayloadChecksum(const Payload& payload);

// Of stored cells, bound to the block they belong to: the same bytes under another key, layer, head
// or length have another checksum, so swapped records are found like flipped bits.
class CellChecksummer {
 public:
  CellChecksummer(const BlockKey& key, uint32_t num_tokens);
  [[nodiscard]] uint32_t Of(uint32_t layer, uint32_t head, std::span<const std::byte> cell) const;

 private:
  uint64_t block_seed_;
};

}  // namespace sketchkv
