#include "client/cpp/tune/chooser.h"

#include <algorithm>
#include <numeric>
#include <optional>

#include "absl/strings/str_format.h"

namespace sketchkv::tune {
namespace {

// Sums of a layer's bits are compared with a target that may be just that sum.
constexpr double kSlack = 1e-9;

double Square(double x) { return x * x; }

bool Cheaper(const Option& a, const Option& b) {
  return a.bits != b.bits ? a.bits < b.bits : a.error < b.error;
}

size_t Cheapest(const LayerOptions& options) {
  return static_cast<size_t>(std::min_element(options.begin(), options.end(), Cheaper) -
                             options.begin());
}

// What a step from one option to another brings.
struct Step {
  size_t layer = 0;
  size_t to = 0;
  double bits = 0;
  double gain = 0;  // of squared error
};

// The option with the most gain a bit, which is the next on the convex hull; of those that take no
// more than `most_bits` more. Nothing when none gains.
std::optional<Step> BestStep(const LayerOptions& options, size_t layer, size_t from,
                             double most_bits) {
  std::optional<Step> best;
  for (size_t to = 0; to < options.size(); ++to) {
    const Step step = {layer, to, options[to].bits - options[from].bits,
                       Square(options[from].error) - Square(options[to].error)};
    if (!(step.gain > 0) || step.bits > most_bits) continue;  // NaN is no gain
    // A gain that costs nothing comes first.
    const bool better = !best || step.gain * std::max(best->bits, kSlack) >
                                     best->gain * std::max(step.bits, kSlack);
    if (better) best = step;
  }
  return best;
}

}  // namespace

absl::StatusOr<std::vector<size_t>> FewestBits(std::span<const LayerOptions> layers,
                                               double target_error) {
  std::vector<size_t> choice;
  for (const LayerOptions& options : layers) {
    std::optional<size_t> best;
    for (size_t i = 0; i < options.size(); ++i) {
      if (!(options[i].error <= target_error)) continue;  // nor does it meet a target
      if (!best || Cheaper(options[i], options[*best])) best = i;
    }
    if (!best) {
      const auto least =
          std::min_element(options.begin(), options.end(),
                           [](const Option& a, const Option& b) { return a.error < b.error; });
      return absl::FailedPreconditionError(absl::StrFormat(
          "target error %g cannot be met in layer %d: the least error of %d candidates is %.4g, "
          "at %.2f bits a number",
          target_error, choice.size(), options.size(), least->error, least->bits));
    }
    choice.push_back(*best);
  }
  return choice;
}

absl::StatusOr<std::vector<size_t>> LeastError(std::span<const LayerOptions> layers,
                                               double target_bits) {
  std::vector<size_t> choice;
  double left = target_bits * static_cast<double>(layers.size()) + kSlack;
  for (const LayerOptions& options : layers) {
    choice.push_back(Cheapest(options));
    left -= options[choice.back()].bits;
  }
  if (left < 0) {
    return absl::FailedPreconditionError(
        absl::StrFormat("target of %g bits a number cannot be met: the fewest are %.4g",
                        target_bits, target_bits - left / static_cast<double>(layers.size())));
  }
  // First without a look at what is left, so that the hull is followed; then with.
  for (const bool fill_up : {false, true}) {
    for (;;) {
      std::optional<Step> best;
      for (size_t layer = 0; layer < layers.size(); ++layer) {
        const auto step = BestStep(layers[layer], layer, choice[layer], fill_up ? left : 1e9);
        if (!step) continue;
        if (!best ||
            step->gain * std::max(best->bits, kSlack) > best->gain * std::max(step->bits, kSlack)) {
          best = step;
        }
      }
      if (!best || best->bits > left) break;
      choice[best->layer] = best->to;
      left -= best->bits;
    }
  }
  return choice;
}

}  // namespace sketchkv::tune
