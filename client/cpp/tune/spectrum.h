#pragma once

#include <cstdint>
#include <vector>

#include "client/cpp/tune/moments.h"

namespace sketchkv::tune {

// What a sample says of the keys or the values of one head: mean and principal axes.
struct Spectrum {
  uint32_t dim = 0;
  std::vector<float> mean;         // [dim]
  std::vector<double> axes;        // [dim][dim], orthonormal rows, the most important first
  std::vector<double> variances;   // [dim] along each axis, above 0
  std::vector<double> importance;  // [dim] of an error along each axis, not increasing
};

// Of values: an axis is as important as its variance.
[[nodiscard]] Spectrum ValueSpectrum(const Moments& values);

// Of keys: an axis is as important as its variance times the RMS of the queries along it. An error
// there meets the query in the score; this power of the queries was found by trial.
[[nodiscard]] Spectrum KeySpectrum(const Moments& keys, const Moments& queries);

// The `count` channels of most energy, ascending: about the mean where the codec takes that out of
// the keys, else about zero.
[[nodiscard]] std::vector<uint32_t> OutlierChannels(const Spectrum& spectrum, uint32_t count,
                                                    bool about_mean);

// Energy about the mean of the largest channel over that of the median channel.
[[nodiscard]] double OutlierRatio(const Spectrum& spectrum);

}  // namespace sketchkv::tune
