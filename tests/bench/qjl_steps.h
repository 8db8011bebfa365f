#pragma once

#include <cstddef>
#include <cstdint>

// The loops of QJL's released algorithm between its matrix products, for one kv head. Plain
// pointers, as exact_kernels.h.
namespace sketchkv::bench::qjl {

inline constexpr size_t kDim = 128;
inline constexpr size_t kSignBits = 256;
inline constexpr size_t kGroupTokens = 32;  // that share a choice of outlier channels
inline constexpr size_t kOutliers = 8;
inline constexpr size_t kValueGroup = 32;  // channels that share a minimum and a scale

[[nodiscard]] bool Supported();  // AVX2 and FMA

// bf16 rows, `stride` elements apart, to packed fp32 [tokens][kDim].
void Widen(const uint16_t* rows, size_t stride, size_t tokens, float* out);
// The kOutliers channels of most energy over kGroupTokens keys, and those channels of each key.
void TakeOutliers(const float* keys, uint8_t* channels, float* outliers);
// Norms of each key without its outlier channels, and of those: [kGroupTokens] both.
void Norms(const float* keys, const float* outliers, float* inlier_norms, float* outlier_norms);
// Signs of projected - outlier_projected, and of outlier_projected; `count` a multiple of 32.
void PackSigns(const float* projected, const float* outlier_projected, size_t count,
               uint32_t* inlier_signs, uint32_t* outlier_signs);
// 2-bit min-max codes of rows as Widen makes them: codes [tokens][kDim / 4], ranges [tokens]
// [kDim / kValueGroup][2], minimum and scale.
void QuantizeValues(const float* values, size_t tokens, uint8_t* codes, float* ranges);

}  // namespace sketchkv::bench::qjl
