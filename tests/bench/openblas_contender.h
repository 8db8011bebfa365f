#pragma once

#include "tests/bench/contender.h"

namespace sketchkv::bench {

// openblas.score: fp32 keys by cblas_sgemm, or sgemv for one query, in whichever order of the
// operands is faster here; a unit is a key. Options bytes, queries; OPENBLAS_NUM_THREADS rules.
void AddOpenBlasContender(Registry* registry);

}  // namespace sketchkv::bench
