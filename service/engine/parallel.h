#pragma once

#include <cstddef>
#include <functional>

#include "absl/status/status.h"
#include "service/engine/executor.h"

namespace sketchkv {

// Executor::ParallelFor with a status. Of several failures the one with the lowest index, so that
// the same input gives the same message; an index may still run after another failed.
[[nodiscard]] absl::Status ParallelForStatus(Executor* executor, size_t count,
                                             const std::function<absl::Status(size_t)>& body);

}  // namespace sketchkv
