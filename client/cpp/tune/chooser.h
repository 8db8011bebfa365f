#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "absl/status/statusor.h"

namespace sketchkv::tune {

// One way to store a layer.
struct Option {
  double bits = 0;  // a number
  double error = 0;
};
using LayerOptions = std::vector<Option>;

// Of each layer the index of the option of fewest bits whose error is at most `target_error`, the
// least error among equals. FAILED_PRECONDITION naming the first layer where none is, with its
// least error.
[[nodiscard]] absl::StatusOr<std::vector<size_t>> FewestBits(std::span<const LayerOptions> layers,
                                                             double target_error);

// The least sum of squared errors at no more than `target_bits` bits a number on average over the
// layers: steps of best return along each layer's convex hull of (bits, error^2), then whatever
// single change still fits. FAILED_PRECONDITION with the least possible average.
[[nodiscard]] absl::StatusOr<std::vector<size_t>> LeastError(std::span<const LayerOptions> layers,
                                                             double target_bits);

}  // namespace sketchkv::tune
