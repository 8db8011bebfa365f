#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>

#include "kernels/layout.h"
#include "kernels/profile.h"

namespace sketchkv {

// The stored bytes of one cell, drawn in kernels/README.md: the one home of the format, for every
// encoder and reader. Little-endian throughout. All sizes follow from layout and profile alone. A
// cell says nothing of itself: no header, so that a tile of sixteen tokens costs the same in a
// block of sixteen as in one of a thousand.
static_assert(std::endian::native == std::endian::little, "the format is read in place");

// Tokens of one tile; a token is a lane. A last tile that is not full is padded with zeros.
constexpr uint32_t kTileTokens = 16;
constexpr size_t kLineBytes = 64;
constexpr uint32_t kWordBits = 32;
// Coordinates that share a number of bits.
constexpr uint32_t kGroupRows = 32;
constexpr int kLargestZero = 32767;  // of min-max values, in either direction
// A minimum of min-max values is a signed count of scale / 16.
constexpr float kZeroPointUnit = 0.0625f;

// Words of 32 bits that `rows` coordinates of a key take at `bits` each.
[[nodiscard]] constexpr uint32_t KeyWords(uint32_t rows, uint32_t bits) {
  return (rows * bits + 31) / 32;
}

// 64-byte lines that sixteen tokens of `channels` channels of values take at `bits` each: lines of
// 16 channels for every 2 bits, and of 32 channels for an odd bit.
[[nodiscard]] constexpr uint32_t ValueLines(uint32_t channels, uint32_t bits) {
  return (channels + 15) / 16 * (bits / 2) + (channels + 31) / 32 * (bits % 2);
}

// A 16-bit scale: the upper half of a non-negative float but for its sign bit, so 8 bits of
// exponent and 8 of mantissa. Infinity and NaN are not stored.
constexpr uint16_t kLargestScale = 0xFEFF;

// Offsets from the start of the cell. Sections that a profile lacks have size 0.
struct CellFormat {
  uint32_t num_tiles = 0;       // ceil(block_tokens / 16)
  uint32_t key_words = 0;       // of a token's planes: sign_bits / 32 or key_row_bits / 32
  uint32_t outlier_words = 0;   // outlier_sign_bits / 32
  uint32_t outlier_groups = 0;  // stored choices of channels: 0 when a table makes it
  uint32_t value_lines = 0;     // of a tile's codes
  uint32_t value_groups = 0;    // kMinMax: ceil(value_dim / value_group_size)

  uint32_t scale_rows = 0;         // of a tile
  uint32_t key_scale_row = 0;      // kSketch, kCodes
  uint32_t outlier_scale_row = 0;  // second sketch
  uint32_t value_scale_row = 0;    // kRotated, kBasis

  size_t scales = 0;            // u16 [num_tiles][scale_rows][16]
  size_t mean = 0;              // Centering::kBlock: bf16 [head_dim]
  size_t planes = 0;            // line-aligned: u32 [num_tiles][key_words][16]
  size_t outlier_planes = 0;    // second sketch: u32 [num_tiles][outlier_words][16]
  size_t outlier_channels = 0;  // u16 [outlier_groups][num_outliers], ascending in a group
  size_t residual_scales = 0;   // kResidual: u16 [num_tiles][num_outliers]
  size_t residuals = 0;         // kResidual: int8 [num_tiles][num_outliers][16]
  size_t outliers_end = 0;      // before padding to a line
  size_t raw_keys = 0;          // [block_tokens][head_dim] of key_dtype
  size_t raw_keys_end = 0;
  size_t values = 0;  // line-aligned: lines [num_tiles][value_lines], or raw rows
  size_t values_end = 0;
  size_t ranges =
      0;  // kMinMax, line-aligned: [num_tiles][value_groups] {u16 scale[16], i16 zero[16]}

  size_t key_bytes = 0;    // what serves keys, without padding between sections
  size_t value_bytes = 0;  // likewise for values
  size_t cell_bytes = 0;   // a multiple of 64

  // The layout and profile are valid and fit each other.
  [[nodiscard]] static CellFormat Make(const KvLayout& layout, const CodecProfile& profile);

  // Where the sixteen scales of a tile begin.
  [[nodiscard]] size_t scale_offset(uint32_t tile, uint32_t row) const {
    return scales + (size_t{tile} * scale_rows + row) * kTileTokens * 2;
  }
  [[nodiscard]] size_t plane_offset(uint32_t tile) const {
    return planes + size_t{tile} * key_words * kLineBytes;
  }
  [[nodiscard]] size_t outlier_plane_offset(uint32_t tile) const {
    return outlier_planes + size_t{tile} * outlier_words * kLineBytes;
  }
  [[nodiscard]] size_t value_offset(uint32_t tile) const {
    return values + size_t{tile} * value_lines * kLineBytes;
  }
};

}  // namespace sketchkv
