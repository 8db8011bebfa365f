#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

#include "absl/status/status.h"

namespace sketchkv::tune {

// Called after each piece of work that is done, from whichever thread did it, one at a time.
using Progress = std::function<void(uint64_t done, uint64_t total)>;

// Runs work(0) to work(count - 1) on up to `num_threads` threads of its own; after an error no more
// is begun. Returns the error of the lowest number that has one. `progress` may be empty.
[[nodiscard]] absl::Status RunAll(size_t count, uint32_t num_threads, const Progress& progress,
                                  const std::function<absl::Status(size_t)>& work);

}  // namespace sketchkv::tune
