#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/codec.h"

namespace sketchkv::testing {

// The codec once more, in double precision and written the obvious way: dense matrices, one number
// at a time, from kernels/README.md alone. Shares no code with kernels/ (only the structs that name
// a layout and a profile), so that an error there is not repeated here.
using Matrix = std::vector<std::vector<double>>;

// The m x d projection. `dense` is what BlockCodec publishes: used for the dense kinds (whose
// orthogonality tests check), ignored for Hadamard, whose rows follow from the seed.
[[nodiscard]] Matrix ReferenceProjection(const CodecProfile& profile, uint32_t dim,
                                         std::span<const float> dense);

// Rows of a dtype as doubles, with the fp8 scale.
[[nodiscard]] Matrix ReferenceRows(const std::byte* data, size_t stride_bytes, DType dtype,
                                   double scale, uint32_t num_rows, uint32_t dim);

// What the bytes of a cell say.
struct ReferenceCell {
  uint32_t num_tokens = 0;
  Matrix keys;                                  // [num_tokens][head_dim], reconstructed
  Matrix values;                                // [num_tokens][value_dim]
  Matrix value_scales;                          // [num_tokens][groups]; empty for raw values
  std::vector<std::vector<int>> signs;          // [num_tokens][m] of +-1
  std::vector<std::vector<int>> outlier_signs;  // second sketch
  std::vector<double> key_scales;               // [num_tokens]
  std::vector<double> outlier_scales;           // [num_tokens], or [num_outliers] for residuals
  std::vector<std::vector<uint32_t>> channels;  // [num_tokens]: outlier channels, may be empty
};
[[nodiscard]] ReferenceCell ReferenceParse(const KvLayout& layout, const CodecProfile& profile,
                                           const Matrix& projection,
                                           std::span<const std::byte> cell);

[[nodiscard]] double ReferenceDot(const std::vector<double>& a, const std::vector<double>& b);

struct ReferenceAttention {
  std::vector<double> out;  // [value_dim]
  double lse = 0;
};
// Over the rows of `keys` and `values`; none: zeros and -inf.
[[nodiscard]] ReferenceAttention ReferenceAttend(const std::vector<double>& query,
                                                 const Matrix& keys, const Matrix& values,
                                                 uint32_t value_dim,
                                                 const AttentionOptions& options);

}  // namespace sketchkv::testing
