#pragma once

#include "tests/bench/contender.h"

namespace sketchkv::bench {

// qjl.encode: QJL's released algorithm on a CPU, blocks as codec.encode takes them, a unit is a raw
// byte. Keys: 256 rows of QR by sgemm on OpenBLAS, the 8 outlier channels of each 32 tokens
// sketched apart, signs packed, both norms. Values: 2 bits, min-max over 32 channels. Options
// bytes, block.
void AddQjlContender(Registry* registry);

}  // namespace sketchkv::bench
