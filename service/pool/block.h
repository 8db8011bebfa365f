#pragma once

#include <array>
#include <compare>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <string>

#include "absl/status/statusor.h"

namespace sketchkv {

// 128-bit digest of a model's layout, resolved profiles and tables.
using Fingerprint = std::array<uint8_t, 16>;

// 16 to 32 opaque bytes from the caller that name a block and its whole prefix.
class BlockHash {
 public:
  static constexpr size_t kMinBytes = 16;
  static constexpr size_t kMaxBytes = 32;

  BlockHash() = default;
  // INVALID_ARGUMENT naming the size when it is not 16-32.
  [[nodiscard]] static absl::StatusOr<BlockHash> FromBytes(std::span<const uint8_t> bytes);

  [[nodiscard]] std::span<const uint8_t> bytes() const { return {bytes_.data(), size_}; }
  [[nodiscard]] std::string ToHex() const;

  bool operator==(const BlockHash&) const = default;
  template <typename H>
  friend H AbslHashValue(H h, const BlockHash& hash) {
    return H::combine(std::move(h), hash.size_, hash.bytes_);
  }

 private:
  std::array<uint8_t, kMaxBytes> bytes_{};  // zero beyond size_
  uint8_t size_ = 0;
};

// What a stored block is known by. `tenant` is the engine's number for a tenant name.
struct BlockKey {
  uint32_t tenant = 0;
  Fingerprint fingerprint{};
  BlockHash hash;

  bool operator==(const BlockKey&) const = default;
  template <typename H>
  friend H AbslHashValue(H h, const BlockKey& key) {
    return H::combine(std::move(h), key.tenant, key.fingerprint, key.hash);
  }
};

// A rectangle of cells of one block.
struct CellRange {
  uint32_t layer_begin = 0;
  uint32_t layer_count = 0;
  uint32_t head_begin = 0;
  uint32_t head_count = 0;

  bool operator==(const CellRange&) const = default;
};

// What the pool must know of a model; a function of the fingerprint.
struct BlockShape {
  uint32_t num_layers = 0;
  uint32_t num_heads = 0;
  uint32_t block_tokens = 0;
  size_t slot_bytes = 0;
};

// A sealed block as a pin shows it. Valid as long as the pin.
struct BlockView {
  const BlockKey* key = nullptr;
  std::span<const std::byte> bytes;          // [slot_bytes]
  std::span<const uint32_t> cell_checksums;  // [num_layers * num_heads]
  uint32_t num_tokens = 0;
  std::byte* gpu = nullptr;  // the same bytes on the GPU; null: none
  // Some of `bytes` were never written: those on the GPU are the block. As it was when pinned.
  bool host_stale = false;
};

}  // namespace sketchkv
