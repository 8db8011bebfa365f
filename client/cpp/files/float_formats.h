#pragma once

#include <cstdint>

namespace sketchkv {
// Keeps these symbols apart from the codec's own of the same words.
inline namespace files {

// Number formats of files and payloads, one element at a time; subnormals, infinities and NaN are
// kept. To a narrower format: round to nearest, ties to even; what is too large becomes infinity
// (E4M3, which has none: NaN).
[[nodiscard]] float Bf16ToFloat(uint16_t bits);
[[nodiscard]] uint16_t FloatToBf16(float value);
[[nodiscard]] float Fp16ToFloat(uint16_t bits);
[[nodiscard]] uint16_t FloatToFp16(float value);
[[nodiscard]] float Fp8E4M3ToFloat(uint8_t bits);
[[nodiscard]] uint8_t FloatToFp8E4M3(float value);
[[nodiscard]] float Fp8E5M2ToFloat(uint8_t bits);
[[nodiscard]] uint8_t FloatToFp8E5M2(float value);

}  // namespace files
}  // namespace sketchkv
