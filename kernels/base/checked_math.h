#pragma once

#include <cstdint>
#include <optional>

namespace sketchkv {

// Sizes that come from the wire are multiplied and added only through these: nullopt on overflow.
[[nodiscard]] inline std::optional<uint64_t> CheckedMul(uint64_t a, uint64_t b) {
  uint64_t out = 0;
  if (__builtin_mul_overflow(a, b, &out)) return std::nullopt;
  return out;
}

[[nodiscard]] inline std::optional<uint64_t> CheckedAdd(uint64_t a, uint64_t b) {
  uint64_t out = 0;
  if (__builtin_add_overflow(a, b, &out)) return std::nullopt;
  return out;
}

// The smallest multiple of `step` (> 0) that is at least `value`. The caller knows it fits.
[[nodiscard]] constexpr uint64_t RoundUp(uint64_t value, uint64_t step) {
  return (value + step - 1) / step * step;
}

}  // namespace sketchkv
