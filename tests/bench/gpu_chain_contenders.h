#pragma once

#include "tests/bench/contender.h"

namespace sketchkv::bench {

// gpu.score, gpu.attend: one launch over all sequences, which is the unit. gpu.attend.b1: a launch
// for each. Options profile, block, sequences, tokens and queries.
void AddGpuChainContenders(Registry* registry);

}  // namespace sketchkv::bench
