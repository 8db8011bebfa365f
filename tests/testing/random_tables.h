#pragma once

#include <cstdint>
#include <memory>

#include "kernels/tables.h"

namespace sketchkv::testing {

// Tables that fit any layout: means of about 1, ascending outlier channels, and orthonormal bases
// of Gaussian rows whose groups of 32 get 4, 3, 2, 1 bits in turn as far as the dimension goes; the
// last eighth of the coordinates gets none. Every head its own; the same on every machine.
[[nodiscard]] std::shared_ptr<const ModelTables> RandomTables(const KvLayout& layout,
                                                              uint32_t num_outliers = 0,
                                                              uint64_t seed = 1);

}  // namespace sketchkv::testing
