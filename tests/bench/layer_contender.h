#pragma once

#include "tests/bench/contender.h"

namespace sketchkv::bench {

// kernel.layer: what sdk.attend asks of the server, by the codec alone: 8 kv heads with 4 queries
// each over `tokens` tokens of each of `sequences` in blocks of `block`, on `threads` cores. A unit
// is such a call; its time is that of the slowest thread, without starting it. Options layers
// (which lie between, as in the server's slots), profile.
void AddLayerContender(Registry* registry);

}  // namespace sketchkv::bench
