#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>

#include "kernels/layout.h"
#include "kernels/profile.h"

namespace sketchkv {

// The stored bytes of one cell, drawn in kernels/README.md: the one home of the format, for every
// encoder and reader. Little-endian throughout. All sizes follow from layout and profile alone.
static_assert(std::endian::native == std::endian::little, "the format is read in place");

// Tokens of one tile; a token is a lane. A last tile that is not full is padded with zeros.
constexpr uint32_t kTileTokens = 16;
constexpr size_t kLineBytes = 64;
constexpr uint32_t kSignWordBits = 32;
constexpr uint8_t kCellTag = 0xC0;  // high nibble of the first byte; the low one is the version

// Powers of two: a stored fp16 x of one kind stands for x * 2^exponent. The encoder chooses the
// exponent so that the cell's largest x lies in [2^14, 2^15).
struct CellHeader {
  uint8_t tag_and_version;
  uint8_t codecs;            // CodecsByte(profile)
  uint16_t num_tokens;       // 1..block_tokens
  int16_t key_exponent;      // of the key scales; 0 when all are 0, or keys are raw
  int16_t outlier_exponent;  // of the outlier scales
  int16_t value_exponent;    // of the value scales
  int16_t minimum_exponent;  // of the value minima
  uint32_t reserved;         // 0
};
static_assert(sizeof(CellHeader) == 16);
constexpr int kMinExponent = -256;  // what a reader accepts
constexpr int kMaxExponent = 160;

// Which codecs made a cell: key codec, outlier method << 2, value codec << 4.
[[nodiscard]] uint8_t CodecsByte(const CodecProfile& profile);

// Offsets from the start of the cell. Sections that a profile lacks have size 0.
struct CellFormat {
  uint32_t num_tiles = 0;       // ceil(block_tokens / 16)
  uint32_t sign_words = 0;      // sign_bits / 32
  uint32_t outlier_words = 0;   // outlier_sign_bits / 32
  uint32_t outlier_groups = 0;  // kSketch: ceil(block_tokens / 32); kResidual: 1
  uint32_t value_groups = 0;    // ceil(value_dim / value_group_size)
  size_t value_row_bytes = 0;   // codes of one token

  size_t outlier_channels = 0;  // u16 [outlier_groups][num_outliers], ascending in a group
  size_t residual_scales = 0;   // kResidual: fp16 [num_outliers]
  size_t key_scales = 0;        // fp16 [num_tiles][16]
  size_t outlier_scales = 0;    // kSketch: fp16 [num_tiles][16]
  size_t signs = 0;             // line-aligned: u32 [num_tiles][sign_words][16]
  size_t outlier_signs = 0;     // kSketch: u32 [num_tiles][outlier_words][16]
  size_t residuals = 0;         // kResidual: int8 [num_tiles][num_outliers][16]
  size_t raw_keys = 0;          // line-aligned: [block_tokens][head_dim] of key_dtype
  size_t keys_end = 0;
  size_t values = 0;       // line-aligned: codes [block_tokens][value_row_bytes], or raw rows
  size_t values_end = 0;   // of the codes or raw rows
  size_t value_lines = 0;  // line-aligned: [num_tiles][value_groups] {fp16 scale[16], minimum[16]}

  size_t key_bytes = 0;    // what serves keys, without header and padding between sections
  size_t value_bytes = 0;  // likewise for values
  size_t cell_bytes = 0;   // a multiple of 64

  // The layout and profile are valid and fit each other.
  [[nodiscard]] static CellFormat Make(const KvLayout& layout, const CodecProfile& profile);

  [[nodiscard]] size_t sign_tile_bytes() const { return sign_words * kLineBytes; }
  [[nodiscard]] size_t outlier_tile_bytes() const { return outlier_words * kLineBytes; }
};

}  // namespace sketchkv
