#pragma once

#include <cstdint>

namespace sketchkv {

// Double-precision functions made of + - * / and exact bit operations only, so that they give the
// same bits on every IEEE machine, which libm does not. Accurate to a few ulp.

// Natural logarithm of a finite x > 0.
[[nodiscard]] double ExactLog(double x);

// cos(pi * numerator / denominator), denominator > 0.
[[nodiscard]] double ExactCosPi(uint64_t numerator, uint64_t denominator);

// 2^exponent as a float; 0 below and infinity above its range, exact between.
[[nodiscard]] float PowerOfTwo(int exponent);

// The exponent e with 2^e <= x < 2^(e+1), x > 0 and finite (subnormals included).
[[nodiscard]] int FloorLog2(float x);

// The splitmix64 finaliser, at position `index` of the stream that starts at `seed`.
[[nodiscard]] constexpr uint64_t SplitMix64(uint64_t seed, uint64_t index) {
  uint64_t z = seed + (index + 1) * 0x9E3779B97F4A7C15ULL;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ULL;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBULL;
  return z ^ (z >> 31);
}

}  // namespace sketchkv
