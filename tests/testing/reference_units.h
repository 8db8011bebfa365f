#pragma once

#include <vector>

#include "tests/testing/reference_codec.h"

namespace sketchkv::testing {

// The levels of row `i` of a run: a quarter of the 3-bit codes of keys have levels of their own.
[[nodiscard]] const std::vector<double>& ReferenceLevels(const ReferenceRun& run, bool keys,
                                                         uint32_t i);
// The unit of a run: what the levels of its bits are multiples of.
[[nodiscard]] double ReferenceRunUnit(const ReferenceRun& run);

// A unit that the encoder tries for a vector of coordinates, and how well it takes it to fit.
struct ReferenceUnit {
  double unit = 0;   // coordinate y of a run is quantised as y / (unit * ReferenceRunUnit(run))
  double merit = 0;  // squared cosine of y and its levels, both in the search's steps
};
// The nine units, as kernels/README.md says the encoder looks for the best. y is not all zeros.
[[nodiscard]] std::vector<ReferenceUnit> ReferenceUnits(const std::vector<ReferenceRun>& runs,
                                                        bool keys, const std::vector<double>& y);

}  // namespace sketchkv::testing
