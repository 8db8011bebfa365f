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

// The projection of keys. `dense` is what BlockCodec publishes: used for the dense kinds (whose
// orthogonality tests check), ignored for Hadamard, whose rows follow from the seed.
[[nodiscard]] Matrix ReferenceProjection(const CodecProfile& profile, uint32_t dim,
                                         std::span<const float> dense, const HeadTable& table);
// The rotation of values: rows of norm sqrt(value_dim), or the table's basis; empty for others.
[[nodiscard]] Matrix ReferenceValueProjection(const CodecProfile& profile, uint32_t value_dim,
                                              const HeadTable& table);

// Rows of a dtype as doubles, with the fp8 scale.
[[nodiscard]] Matrix ReferenceRows(const std::byte* data, size_t stride_bytes, DType dtype,
                                   double scale, uint32_t num_rows, uint32_t dim);

// Runs of coordinates of equal bits, and the level of each code.
struct ReferenceRun {
  uint32_t row = 0, rows = 0, bits = 0;
  std::vector<double> levels;  // ascending, [2^bits], in units of the coordinate
  // Of the last quarter of each 32 coordinates of keys of 3 bits.
  std::vector<double> spread_levels;
};
// Of the codes of keys, or of rotated values.
[[nodiscard]] std::vector<ReferenceRun> ReferenceKeyRuns(const CodecProfile& profile, uint32_t dim,
                                                         const HeadTable& table);
[[nodiscard]] std::vector<ReferenceRun> ReferenceValueRuns(const CodecProfile& profile,
                                                           uint32_t dim, const HeadTable& table);

// What the bytes of a cell say.
struct ReferenceCell {
  uint32_t num_tokens = 0;
  Matrix keys;                                  // [num_tokens][head_dim], reconstructed
  Matrix values;                                // [num_tokens][value_dim]
  Matrix value_scales;                          // [num_tokens][groups or 1]; empty for raw values
  Matrix key_levels;                            // [num_tokens][rows]: levels of signs or codes
  Matrix value_levels;                          // [num_tokens][rows] of rotated values
  Matrix outlier_signs;                         // second sketch: +-1
  Matrix residual_scales;                       // [num_tokens][num_outliers]
  std::vector<double> key_mean;                 // [head_dim]: what was taken out; zeros for none
  std::vector<double> key_scales;               // [num_tokens]
  std::vector<double> outlier_scales;           // [num_tokens], second sketch
  std::vector<std::vector<uint32_t>> channels;  // [num_tokens]: outlier channels, may be empty
};
[[nodiscard]] ReferenceCell ReferenceParse(const KvLayout& layout, const CodecProfile& profile,
                                           const HeadTable& table, const Matrix& projection,
                                           std::span<const std::byte> cell, uint32_t num_tokens);

[[nodiscard]] double ReferenceDot(const std::vector<double>& a, const std::vector<double>& b);

struct ReferenceAttention {
  std::vector<double> out;  // [value_dim]
  double lse = 0;
};
// scores: <q, k> of the tokens whose `values` are given; none: zeros and -inf.
[[nodiscard]] ReferenceAttention ReferenceAttend(const std::vector<double>& scores,
                                                 const Matrix& values, uint32_t value_dim,
                                                 const AttentionOptions& options);

}  // namespace sketchkv::testing
