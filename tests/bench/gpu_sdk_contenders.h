#pragma once

#include "tests/bench/contender.h"

namespace sketchkv::bench {

// sdk.gpu.put and sdk.gpu.attend: as sdk.put and sdk.attend, payloads, queries and outputs in this
// process's memory on the card of the server.
void AddGpuSdkContenders(Registry* registry);

}  // namespace sketchkv::bench
