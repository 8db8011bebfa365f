#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/codec.h"
#include "tests/bench/data.h"

namespace sketchkv::bench {

// A codec of `head_count` heads in one layer, bf16, kDim. Options profile, isa and
// projection (orthogonal: dense rows).
[[nodiscard]] absl::StatusOr<std::unique_ptr<BlockCodec>> MakeCodec(const Options& options,
                                                                    uint32_t block_tokens,
                                                                    uint32_t head_count);

// The run's keys and values encoded by a codec of one head: cell after cell, block_tokens each.
[[nodiscard]] absl::StatusOr<std::vector<std::byte>> EncodeCells(const BlockCodec& codec,
                                                                 const Numbers& numbers);

}  // namespace sketchkv::bench
