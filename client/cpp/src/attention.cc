#include "sketchkv/attention.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace sketchkv {
inline namespace sdk {
namespace {

constexpr float kNone = -std::numeric_limits<float>::infinity();

// Weight of a side in the merged softmax; 0 for a side without tokens, whose output is not read.
float Weight(float lse, float max) { return lse == kNone ? 0.0f : std::exp(lse - max); }

}  // namespace

bool MergeAttention(std::span<float> out_a, std::span<float> lse_a, std::span<const float> out_b,
                    std::span<const float> lse_b, size_t value_dim) {
  const size_t rows = lse_a.size();
  if (lse_b.size() != rows || out_a.size() != out_b.size()) return false;
  // Division, not multiplication: rows * value_dim may overflow.
  if (value_dim == 0 || rows == 0
          ? !out_a.empty()
          : out_a.size() % value_dim != 0 || out_a.size() / value_dim != rows) {
    return false;
  }
  for (size_t row = 0; row < rows; ++row) {
    float* a = out_a.data() + row * value_dim;
    const float* b = out_b.data() + row * value_dim;
    const bool none_a = lse_a[row] == kNone, none_b = lse_b[row] == kNone;
    if (none_a && none_b) {
      std::fill(a, a + value_dim, 0.0f);
      continue;
    }
    const float max = std::max(lse_a[row], lse_b[row]);  // a NaN goes on through the weights
    const float weight_a = Weight(lse_a[row], max);
    const float weight_b = Weight(lse_b[row], max);
    const float sum = weight_a + weight_b;
    const float scale_a = weight_a / sum;
    const float scale_b = weight_b / sum;
    for (size_t i = 0; i < value_dim; ++i) {
      // A side without tokens may hold anything, NaN included.
      const float part_a = none_a ? 0.0f : a[i] * scale_a;
      const float part_b = none_b ? 0.0f : b[i] * scale_b;
      a[i] = part_a + part_b;
    }
    lse_a[row] = max + std::log(sum);
  }
  return true;
}

}  // namespace sdk
}  // namespace sketchkv
