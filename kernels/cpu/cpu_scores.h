#pragma once

#include <cstdint>

#include "kernels/cpu/cpu_codec.h"

namespace sketchkv {

// Of up to four queries over the tiles of cells that are attended together.
struct CpuCellCodec::Scores {
  uint32_t num_queries = 0;
  uint32_t num_tiles = 0;
  alignas(64) float of[kQueryTile][kMaxCellTokens];
  uint8_t digits[kQueryTile][2 * kMaxCellTokens];  // WeighTokensArgs
  // Of each tile: its lines of values, and their scales.
  const uint8_t* lines[kMaxCellTokens / kLanes];
  const uint8_t* scales[kMaxCellTokens / kLanes];
};

}  // namespace sketchkv
