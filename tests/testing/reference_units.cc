#include "tests/testing/reference_units.h"

#include <algorithm>
#include <cmath>

namespace sketchkv::testing {
namespace {

double Nearest(double x) { return std::floor(x + 0.5); }

// Of the levels above 0, the one nearest to a magnitude.
double NearestLevel(const std::vector<double>& levels, double magnitude) {
  double best = levels.back();
  for (size_t i = levels.size() / 2; i < levels.size(); ++i) {
    if (std::fabs(levels[i] - magnitude) < std::fabs(best - magnitude)) best = levels[i];
  }
  return best;
}

}  // namespace

const std::vector<double>& ReferenceLevels(const ReferenceRun& run, bool keys, uint32_t i) {
  const uint32_t piece = std::min(32u, run.rows - i / 32 * 32);
  return keys && run.bits == 3 && i % 32 >= piece - piece / 4 ? run.spread_levels : run.levels;
}

double ReferenceRunUnit(const ReferenceRun& run) {
  const double largest[] = {0.79788456, 90 * 0.0167820, 114 * 0.0188866, 104 * 0.0262197};
  return run.levels.back() / largest[run.bits - 1];
}

std::vector<ReferenceUnit> ReferenceUnits(const std::vector<ReferenceRun>& runs, bool keys,
                                          const std::vector<double>& y) {
  double unit_energy = 0;
  for (const ReferenceRun& run : runs) unit_energy += run.rows * std::pow(ReferenceRunUnit(run), 2);
  const double rms = std::sqrt(ReferenceDot(y, y) / unit_energy);
  std::vector<ReferenceUnit> units;
  for (int trial = 0; trial < 9; ++trial) {
    const double factor = 0.85 + 0.04375 * trial;
    double dot = 0, square = 0;
    for (const ReferenceRun& run : runs) {
      const double unit = ReferenceRunUnit(run);
      const double level_step = run.levels.back() / 63;
      for (uint32_t r = 0; r < run.rows; ++r) {
        // In 21sts of the unit, all that fits a byte; what is above the 63rd has the highest level.
        const double steps =
            std::min(255.0, Nearest(std::fabs(y[run.row + r]) / (rms * unit) * 21));
        const double tried = std::min(63.0, steps) / 21 / factor * unit;
        const double level =
            level_step * Nearest(NearestLevel(ReferenceLevels(run, keys, r), tried) / level_step);
        dot += steps / 21 * unit * level;
        square += level * level;
      }
    }
    units.push_back({rms * factor, dot * dot / square});
  }
  return units;
}

}  // namespace sketchkv::testing
