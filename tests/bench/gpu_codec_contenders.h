#pragma once

#include "tests/bench/contender.h"

namespace sketchkv::bench {

// gpu.encode, gpu.decode: bf16 keys and values of kv heads to cells and back, one launch, which is
// the unit; its bytes are those of rows and cells. Options profile, block, sequences and tokens.
// gpu.copy: from one half of option bytes to the other; a unit is a byte read or written.
void AddGpuCodecContenders(Registry* registry);

}  // namespace sketchkv::bench
