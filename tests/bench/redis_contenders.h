#pragma once

#include "tests/bench/contender.h"

namespace sketchkv::bench {

// A redis-server that stores raw blocks, pipelined. Options: server (a path of a Unix socket, or a
// port of this host), items, bytes (of one value). A unit is a byte.
//   redis.set   values under keys that were deleted before
//   redis.get   values into memory that is there
void AddRedisContenders(Registry* registry);

}  // namespace sketchkv::bench
