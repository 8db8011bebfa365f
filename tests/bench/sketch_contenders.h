#pragma once

#include "tests/bench/contender.h"

namespace sketchkv::bench {

// The product's own scans over encoded cells of one kv head, a unit is a key:
//   sketch.score   scores of `queries` queries, into a window that stays in cache
//   sketch.attend  partial attention, finished
// Options: profile, isa, bytes (of key data; sketch.attend: keys and values), queries, threads,
// block (tokens of one), context (tokens of one call; 0: all), stride (cells from one to the next),
// shuffled (1: blocks in random order).
void AddSketchContenders(Registry* registry);

}  // namespace sketchkv::bench
