#pragma once

#include "tests/bench/contender.h"

namespace sketchkv::bench {

// onednn.score: bf16 keys by oneDNN's matmul, in whichever order of the operands is faster here; a
// unit is a key. Options bytes, queries; OMP_NUM_THREADS rules.
void AddOneDnnContender(Registry* registry);

}  // namespace sketchkv::bench
