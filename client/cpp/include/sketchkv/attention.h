#pragma once

#include <cstddef>
#include <span>

namespace sketchkv {
inline namespace sdk {

// Merges attention over two disjoint sets of tokens, in place into the first:
//   lse = log(exp(lse_a) + exp(lse_b)),  out = out_a exp(lse_a - lse) + out_b exp(lse_b - lse)
// (the split softmax of FlashAttention, arXiv 2205.14135, section 3.1).
// out_a, out_b: [rows, value_dim]; lse_a, lse_b: [rows], natural log, -inf for no tokens (such a
// side counts for nothing; two such sides give zeros and -inf). Sizes must agree: rows =
// lse_a.size(), out.size() = rows * value_dim; returns false and changes nothing when they do not.
[[nodiscard]] bool MergeAttention(std::span<float> out_a, std::span<float> lse_a,
                                  std::span<const float> out_b, std::span<const float> lse_b,
                                  size_t value_dim);

}  // namespace sdk
}  // namespace sketchkv
