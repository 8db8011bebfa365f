#pragma once

#include "tests/bench/contender.h"

namespace sketchkv::bench {

// The bare gRPC server's client. Option server (host:port).
//   bare.stream  `items` items of `up` and `down` bytes on one stream; a unit is a byte of what
//   they
//                stand for: items * logical
//   bare.ping    one unary call of `up` and `down` bytes; a unit is a call
// Pauses apply to bare.ping.
void AddBareContenders(Registry* registry);

}  // namespace sketchkv::bench
