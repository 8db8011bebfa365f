#include "kernels/exact_math.h"

#include <bit>
#include <limits>

namespace sketchkv {
namespace {

constexpr double kPi = 3.14159265358979323846;
constexpr double kLn2 = 0.693147180559945309417;
constexpr double kSqrt2 = 1.41421356237309504880;

// Taylor series on [0, pi/4], summed from the smallest term.
double CosSeries(double x) {
  const double z = x * x;
  double sum = 1.0;
  for (int k = 18; k >= 2; k -= 2) sum = 1.0 - z / (k * (k - 1.0)) * sum;
  return sum;
}

double SinSeries(double x) {
  const double z = x * x;
  double sum = 1.0;
  for (int k = 19; k >= 3; k -= 2) sum = 1.0 - z / (k * (k - 1.0)) * sum;
  return x * sum;
}

}  // namespace

double ExactLog(double x) {
  int exponent = 0;
  if (x < std::numeric_limits<double>::min()) {  // subnormal
    x *= 0x1p64;
    exponent = -64;
  }
  const auto bits = std::bit_cast<uint64_t>(x);
  exponent += static_cast<int>(bits >> 52) - 1023;
  double mantissa = std::bit_cast<double>((bits & 0x000FFFFFFFFFFFFFULL) | 0x3FF0000000000000ULL);
  if (mantissa > kSqrt2) {
    mantissa *= 0.5;
    ++exponent;
  }
  // log m = 2 atanh((m - 1) / (m + 1)), |argument| < 0.172.
  const double t = (mantissa - 1.0) / (mantissa + 1.0);
  const double z = t * t;
  double sum = 0.0;
  for (int k = 23; k >= 3; k -= 2) sum = (sum + 1.0 / k) * z;
  return exponent * kLn2 + 2.0 * t * (1.0 + sum);
}

double ExactCosPi(uint64_t numerator, uint64_t denominator) {
  uint64_t n = numerator % (2 * denominator);
  if (n > denominator) n = 2 * denominator - n;  // cos is even and has period 2 pi
  double sign = 1.0;
  if (2 * n > denominator) {  // cos(pi - x) = -cos x
    n = denominator - n;
    sign = -1.0;
  }
  const auto d = static_cast<double>(denominator);
  if (4 * n <= denominator) return sign * CosSeries(kPi * static_cast<double>(n) / d);
  // cos x = sin(pi/2 - x), and pi/2 - x = pi (d - 2n) / (2d).
  return sign * SinSeries(kPi * static_cast<double>(denominator - 2 * n) / (2.0 * d));
}

float PowerOfTwo(int exponent) {
  if (exponent > 127) return std::numeric_limits<float>::infinity();
  if (exponent < -149) return 0.0f;
  if (exponent < -126) return std::bit_cast<float>(uint32_t{1} << (exponent + 149));
  return std::bit_cast<float>(static_cast<uint32_t>(exponent + 127) << 23);
}

int FloorLog2(float x) {
  const auto bits = std::bit_cast<uint32_t>(x);
  const int exponent = static_cast<int>(bits >> 23 & 0xFF);
  if (exponent > 0) return exponent - 127;
  return 31 - std::countl_zero(bits) - 149;
}

}  // namespace sketchkv
