#pragma once

#include <array>
#include <cstdint>
#include <span>

#include "kernels/cpu/cpu_codec.h"

namespace sketchkv {

// What is left of a list of cells to query: the first one from `token` on.
class CellCursor {
 public:
  explicit CellCursor(std::span<const CellTokens> cells) : cells_(cells) { Settle(); }

  [[nodiscard]] bool done() const { return cells_.empty(); }
  // The first cell's tokens that are left, at most up to the end of `num_tiles` tiles.
  [[nodiscard]] CellTokens Peek(uint32_t num_tiles) const;
  // Takes what Peek gave.
  void Take(const CellTokens& piece);

 private:
  void Settle();  // to a cell that has tokens left

  std::span<const CellTokens> cells_;
  uint32_t token_ = 0;
  bool begun_ = false;  // token_ is of cells_[0]
};

// Tiles of neighbouring cells that are queried together, and where the parts of each are.
struct CpuCellCodec::Tiles {
  // Enough to pay for what is done once for all of them, few enough to stay in the first cache
  // between scores and values.
  static constexpr uint32_t kMost = 16;
  // Keys are prefetched so many tiles ahead, half a KiB each and more.
  static constexpr uint32_t kAhead = 8;

  uint32_t num_pieces = 0;
  std::array<CellTokens, kMost> pieces;  // of cells; whole tiles where they meet
  uint32_t num_tiles = 0;
  bool with_values = false;
  // Of the tiles' tokens, those that are asked for.
  uint32_t token_begin = 0, token_end = 0;
  // Also of the tiles ahead; where there is none, the last again. Not of raw keys.
  const uint8_t* planes[kMost + kAhead];
  const uint8_t* key_scales[kMost + kAhead];
  // If with_values; not of raw ones.
  const uint8_t* lines[kMost];
  const uint8_t* value_scales[kMost];
};

// What up to four queries make of tiles.
struct CpuCellCodec::Scores {
  static constexpr uint32_t kTokens = Tiles::kMost * kLanes;

  uint32_t num_queries = 0;
  alignas(64) float of[kQueryTile][kTokens];
  uint8_t digits[kQueryTile][2 * kTokens];
};

}  // namespace sketchkv
