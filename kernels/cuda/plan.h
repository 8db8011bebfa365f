#pragma once

#include <cstdint>
#include <optional>
#include <span>

#include "absl/status/status.h"
#include "kernels/cuda/launch.h"
#include "kernels/layout.h"
#include "kernels/profile.h"

// From the codec's terms to those of the CUDA files.
namespace sketchkv::cuda {

// How the tuned kernels see a cell of `profile`; none if they do not take it: they want head_dim
// and value_dim 128, blocks of 16, 32, 64, ... tokens, qjl with 256 sign bits, qjl2p or qjl3p on
// Hadamard rows without centring or outliers, and values of 2 bits, rotated or min-max by 32
// channels.
[[nodiscard]] std::optional<CellPlan> MakeCellPlan(const KvLayout& layout,
                                                   const CodecProfile& profile);

// Likewise for encoding and decoding.
[[nodiscard]] std::optional<CodecPlan> MakeCodecPlan(const KvLayout& layout,
                                                     const CodecProfile& profile);

// Tokens [token_begin, token_end) of a chain whose block table begins at `first_block`.
struct TokenRange {
  uint32_t first_block = 0;
  uint32_t token_begin = 0;
  uint32_t token_end = 0;
};

// Deals out the steps of a launch over `ranges`, at most kMaxSequences: sets what `chain` says of
// them. `most.narrow` is at least 1. Where that costs few steps, no share is of two (sequence, kv
// head) pairs, and thread blocks are wide ones if there are such. InvalidArgument for 2^32 steps in
// all, or more.
[[nodiscard]] absl::Status Schedule(std::span<const TokenRange> ranges, uint32_t num_kv_heads,
                                    const ThreadBlocks& most, ChainArgs* chain);

}  // namespace sketchkv::cuda
