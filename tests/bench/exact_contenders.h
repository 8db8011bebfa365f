#pragma once

#include "tests/bench/contender.h"

namespace sketchkv::bench {

// Our own exact kernels over bf16 keys, a unit is a key:
//   exact.score, exact.attend   options bytes, queries, threads, context as the sketch's; kernel
//                               (avx512_bf16, avx2, scalar; else the best)
// and the limits, a unit is a byte:
//   stream.read, stream.copy    options bytes, threads
// A kernel that disagrees with plain loops is refused: INTERNAL.
void AddExactContenders(Registry* registry);

}  // namespace sketchkv::bench
