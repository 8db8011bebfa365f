#pragma once

#include "tests/bench/contender.h"

namespace sketchkv::bench {

// pool.memory: fills a pool with `blocks` 16-token blocks of the tiny-lm layout (4 layers, 2 heads,
// d = 128, the default profile) in chains of 64. A unit is a block; its "nanoseconds" are bytes of
// resident memory over the exact size of the slots. bytes_per_unit: the exact size of a slot.
void AddMemoryContender(Registry* registry);

}  // namespace sketchkv::bench
