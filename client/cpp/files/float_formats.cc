#include "client/cpp/files/float_formats.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

namespace sketchkv {
inline namespace files {
namespace {

// A format of 1 sign bit, `kExponentBits` and `kMantissaBits`. With kHasInfinity the top exponent
// is infinity and NaN, as in IEEE 754; without, only all ones is NaN (OCP's E4M3 "fn").
template <int kExponentBits, int kMantissaBits, bool kHasInfinity>
struct SmallFloat {
  static constexpr int kBias = (1 << (kExponentBits - 1)) - 1;
  static constexpr uint32_t kMantissaMask = (1u << kMantissaBits) - 1;
  static constexpr uint32_t kExponentMask = (1u << kExponentBits) - 1;
  static constexpr uint32_t kTop = kExponentMask << kMantissaBits;
  static constexpr uint32_t kNan =
      kTop | (kHasInfinity ? 1u << (kMantissaBits - 1) : kMantissaMask);
  static constexpr uint32_t kMaxFinite = kHasInfinity ? kTop - 1 : kNan - 1;

  static float ToFloat(uint32_t bits) {
    const bool negative = (bits >> (kExponentBits + kMantissaBits)) & 1;
    const uint32_t exponent = (bits >> kMantissaBits) & kExponentMask;
    const uint32_t mantissa = bits & kMantissaMask;
    float magnitude = 0;
    if (kHasInfinity && exponent == kExponentMask) {
      magnitude = mantissa == 0 ? std::numeric_limits<float>::infinity()
                                : std::numeric_limits<float>::quiet_NaN();
    } else if (!kHasInfinity && (bits & (kTop | kMantissaMask)) == kNan) {
      magnitude = std::numeric_limits<float>::quiet_NaN();
    } else if (exponent == 0) {
      magnitude = std::ldexp(static_cast<float>(mantissa), 1 - kBias - kMantissaBits);
    } else {
      magnitude = std::ldexp(static_cast<float>(mantissa | (1u << kMantissaBits)),
                             static_cast<int>(exponent) - kBias - kMantissaBits);
    }
    return negative ? -magnitude : magnitude;
  }

  static uint32_t FromFloat(float value) {
    const uint32_t sign = std::signbit(value) ? 1u << (kExponentBits + kMantissaBits) : 0;
    if (std::isnan(value)) return sign | kNan;
    const float magnitude = std::fabs(value);
    if (std::isinf(value)) return sign | (kHasInfinity ? kTop : kNan);
    if (magnitude == 0) return sign;
    int exponent = 0;
    std::frexp(magnitude, &exponent);  // magnitude = f * 2^exponent, f in [0.5, 1)
    const int unit = std::max(exponent - 1, 1 - kBias) - kMantissaBits;
    // The quotient is exact, so nearbyint (ties to even) is the only rounding. A carry out of the
    // mantissa lands in the exponent, as it should.
    const auto steps = static_cast<uint32_t>(std::nearbyint(std::ldexp(magnitude, -unit)));
    const int shift = unit + kMantissaBits + kBias - 1;  // 0 for subnormals and the first binade
    const uint64_t bits = steps + (static_cast<uint64_t>(shift) << kMantissaBits);
    if (bits > kMaxFinite) return sign | (kHasInfinity ? kTop : kNan);
    return sign | static_cast<uint32_t>(bits);
  }
};

using Fp16 = SmallFloat<5, 10, true>;
using E5M2 = SmallFloat<5, 2, true>;
using E4M3 = SmallFloat<4, 3, false>;

}  // namespace

float Bf16ToFloat(uint16_t bits) { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }

uint16_t FloatToBf16(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  if (std::isnan(value)) return static_cast<uint16_t>((bits >> 16) | 0x40);  // stays a NaN
  return static_cast<uint16_t>((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}

float Fp16ToFloat(uint16_t bits) { return Fp16::ToFloat(bits); }
uint16_t FloatToFp16(float value) { return static_cast<uint16_t>(Fp16::FromFloat(value)); }
float Fp8E4M3ToFloat(uint8_t bits) { return E4M3::ToFloat(bits); }
uint8_t FloatToFp8E4M3(float value) { return static_cast<uint8_t>(E4M3::FromFloat(value)); }
float Fp8E5M2ToFloat(uint8_t bits) { return E5M2::ToFloat(bits); }
uint8_t FloatToFp8E5M2(float value) { return static_cast<uint8_t>(E5M2::FromFloat(value)); }

}  // namespace files
}  // namespace sketchkv
