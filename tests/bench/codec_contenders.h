#pragma once

#include "tests/bench/contender.h"

namespace sketchkv::bench {

// Blocks of one layer with 8 kv heads (Llama-3.1-8B's), keys and values, a unit is a raw byte:
//   codec.encode   raw bf16 [tokens, heads, dim] to cells
//   codec.decode   cells to raw bf16
// Options: profile, isa, bytes (raw), block, threads.
void AddCodecContenders(Registry* registry);

}  // namespace sketchkv::bench
