#pragma once

#include <cstdint>

#include "kernels/cpu/cpu_codec.h"

namespace sketchkv {

// Of up to four queries over one cell; index = token.
struct CpuCellCodec::Scores {
  uint32_t num_queries = 0;
  alignas(64) float of[kQueryTile][kMaxCellTokens];
  uint8_t digits[kQueryTile][2 * kMaxCellTokens];  // WeighTokensArgs
};

}  // namespace sketchkv
