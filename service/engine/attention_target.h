#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "service/engine/gpu.h"
#include "service/pool/block_pool.h"

namespace sketchkv {

// Tokens of a target that are answered on the card.
struct GpuRun {
  std::shared_ptr<const GpuBlocks> blocks;
  uint32_t first_token = 0;  // of the target, that of token_begin
  uint32_t token_begin = 0;  // counted from the first of `blocks`
  uint32_t token_end = 0;
};

struct TokenRange {
  uint32_t begin = 0;
  uint32_t end = 0;
};

// The tokens of one item and the pins on them. Items of equal targets share one.
struct AttentionTarget {
  std::shared_ptr<const ReadPins> pins;
  bool leased = false;       // the pins are there for other requests too
  uint32_t token_begin = 0;  // clamped range
  uint32_t token_end = 0;
  // Who answers which of these tokens, each once and in order. With no token at all it is the host.
  std::vector<TokenRange> host_ranges;
  std::vector<GpuRun> gpu_runs;
};

using AttentionTargets = std::vector<std::shared_ptr<const AttentionTarget>>;

// Gives the tokens of blocks with a copy on the card to it, if `use_gpu`, and the rest to the host.
void DealOutTokens(bool use_gpu, AttentionTarget* target);

}  // namespace sketchkv
