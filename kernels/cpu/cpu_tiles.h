#pragma once

#include <cstdint>

#include "kernels/cpu/cpu_codec.h"

namespace sketchkv {

// Tiles of neighbouring cells that are queried together, and where the parts of each are.
struct CpuCellCodec::Tiles {
  static constexpr uint32_t kMost = kMaxCellTokens / kLanes;
  // Keys are prefetched so many tiles ahead: half a KiB each and more.
  static constexpr uint32_t kAhead = 8;

  std::span<const CellTokens> cells;
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
  uint32_t num_queries = 0;
  alignas(64) float of[kQueryTile][kMaxCellTokens];
  alignas(64) float scaled[kMaxCellTokens];  // WeighTokensArgs
  uint8_t digits[kQueryTile][2 * kMaxCellTokens];
};

}  // namespace sketchkv
