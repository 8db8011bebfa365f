#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/isa.h"

namespace sketchkv::bench {

// Names of the levels that this CPU and build support: the one the server would choose first.
[[nodiscard]] std::vector<std::string> IsaLevels();

}  // namespace sketchkv::bench
