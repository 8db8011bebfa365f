#pragma once

#include <cstddef>
#include <cstdint>

// What crosses the border between the codec and its per-ISA kernels: plain structs, pointers and
// one table. Included by files compiled with special flags, so it must emit nothing: no inline
// functions, no standard containers.
namespace sketchkv {

enum class Isa;

constexpr uint32_t kLanes = 16;    // keys (or channels) side by side in every kernel
constexpr uint32_t kMaxDim = 576;  // of keys and values
constexpr uint32_t kMaxCellTokens = 1024;
constexpr uint32_t kQueryTile = 4;  // queries that share the unpacking of a tile
constexpr uint32_t kMaxOutlierChannels = 16;

// 2^x as three factors, so that |x| may exceed what one float holds. Multiplied one by one.
struct Pow2Factors {
  float f[3];
};

// The m x d projection S. Hadamard: row r of block j is row r of (DCT(b) tensor H(2^a)) times the
// block's sign diagonal. y = S x in either form.
struct ProjectionArgs {
  uint32_t dim;        // d = pow2_part * odd_part
  uint32_t rows;       // m
  uint32_t pow2_part;  // 2^a
  uint32_t odd_part;   // b
  const float* signs;  // [ceil(m / d)][d] of +-1; null when dense
  const float* dct;    // [b][b], rows of norm sqrt(b)
  const float* dense;  // [m][d]; null when Hadamard
};

// Rows in the caller's memory, any alignment. dtype: the numbers of DType.
struct RowsArgs {
  const uint8_t* data;
  size_t stride;
  uint32_t dtype;
  const float* fp8_values;  // [256], with the scale applied; null unless fp8
};

struct SketchArgs {
  const ProjectionArgs* projection;
  const float* keys;  // [d][16]
  uint8_t* signs;     // [m / 32][16] u32
  float* energy;      // [16]: |k|^2
  float* dot;         // [16]: <S k, bits>
};

struct ScoreSignsArgs {
  const uint8_t* signs;   // [tiles][words][16] u32
  const uint8_t* scales;  // fp16 [tiles][16]
  uint32_t words;
  uint32_t tile_begin, tile_end;
  uint32_t num_queries;                // 1..kQueryTile
  const float* projected[kQueryTile];  // [32 * words]: -S q
  Pow2Factors factors[kQueryTile];
  bool accumulate;  // add to scores rather than set
  float* scores;    // [num_queries][stride], index = token of the cell
  size_t stride;
};

// scores += factor * sum_o coefficient_o * residual_o
struct ScoreResidualsArgs {
  const uint8_t* residuals;  // int8 [tiles][num_outliers][16]
  uint32_t num_outliers;
  uint32_t tile_begin, tile_end;
  const float* coefficients;  // [num_outliers]
  Pow2Factors factors;
  float* scores;
};

// Splits the projection of a query between channels inside and outside `channels`:
// rest = S q - sum_o S[:, o] q_o and chosen = that sum, both negated like `projected`.
struct SplitQueryArgs {
  const float* projected;  // [rows], negated
  uint32_t rows;
  uint32_t chosen_rows;                       // <= rows, a multiple of 16
  const float* columns[kMaxOutlierChannels];  // [rows]: column o of S
  float weights[kMaxOutlierChannels];         // q_o
  uint32_t num_columns;
  float* rest;    // [rows]
  float* chosen;  // [chosen_rows]
};

struct ScoreRowsArgs {
  RowsArgs rows;
  uint32_t dim;
  uint32_t token_begin, token_end;
  uint32_t num_queries;
  const float* queries[kQueryTile];  // [dim rounded up to 16, zeros behind]
  float* scores;                     // [num_queries][stride], index = token
  size_t stride;
};

// In: scores. Out: exp(logit - max) for tokens [begin, end), 0 for the rest of their tiles. Folds
// maximum and sum into the partial and rescales its output when the maximum moves.
struct SoftmaxArgs {
  float* scores;  // [tiles * 16]
  uint32_t token_begin, token_end;
  float scale, softcap;
  float* max;
  float* sum;
  float* out;  // [dim]
  uint32_t dim;
};

// Min-max values: code * scale + minimum.
struct ValueCodesArgs {
  uint32_t dim, group_size, num_groups, bits;
  size_t row_bytes;
  const uint8_t* codes;  // [tokens][row_bytes]; kernels may read 8 bytes past the last row
  const uint8_t* lines;  // [tiles][num_groups] of 64 bytes: fp16 scale[16], fp16 minimum[16]
  Pow2Factors scale_factors, minimum_factors;
};

struct AttendCodesArgs {
  ValueCodesArgs values;
  uint32_t token_begin, token_end;
  uint32_t num_queries;
  const float* weights;  // [num_queries][stride], 0 outside the range within its tiles
  size_t stride;
  float* out[kQueryTile];  // [dim]
};

struct AttendRowsArgs {
  RowsArgs rows;
  uint32_t dim;
  uint32_t token_begin, token_end;
  uint32_t num_queries;
  const float* weights;
  size_t stride;
  float factor;  // of every weight
  float* out[kQueryTile];
};

struct DecodeValuesArgs {
  ValueCodesArgs values;
  uint32_t num_tokens;
  Pow2Factors factors;  // of the sum code * scale + minimum
  uint8_t* out;
  size_t out_stride;
  uint32_t out_dtype;
};

// Tiles are float [channel][16], lane = token. No pointer needs alignment.
struct KernelTable {
  const char* name;

  // Rows to a tile; tokens from num_tokens up become zeros.
  void (*load_tile)(const RowsArgs& rows, uint32_t num_tokens, uint32_t dim, float* tile);
  // A tile to rows of bf16, fp16 or fp32; rounds to nearest even, saturates at the largest finite.
  void (*store_tile)(const float* tile, uint32_t num_tokens, uint32_t dim, uint8_t* out,
                     size_t out_stride, uint32_t out_dtype);
  // The largest bit pattern of |x|: orders floats, and NaN and Inf come last. count: of 16s.
  uint32_t (*max_abs_bits)(const float* x, size_t count);
  void (*multiply)(float* x, size_t count, const Pow2Factors& factors);
  void (*to_half)(const float* x, size_t count, uint8_t* out);
  void (*from_half)(const uint8_t* x, size_t count, float* out);
  // energy[c] = sum over tokens of x^2.
  void (*channel_energy)(const float* tiles, uint32_t num_tiles, uint32_t dim, float* energy);

  void (*sketch_tile)(const SketchArgs& args);
  // y: [ceil(m / d) * d][16] (Hadamard) or [m][16] (dense).
  void (*project_tile)(const ProjectionArgs& projection, const float* x, float* y);
  // out[c] = scale * sum_i bits_i S[i][c], fp16 scales [16].
  void (*reconstruct_tile)(const ProjectionArgs& projection, const uint8_t* signs,
                           const uint8_t* scales, float* out);

  void (*score_signs)(const ScoreSignsArgs& args);
  void (*score_residuals)(const ScoreResidualsArgs& args);
  void (*split_query)(const SplitQueryArgs& args);
  void (*score_rows)(const ScoreRowsArgs& args);
  void (*softmax)(const SoftmaxArgs& args);
  void (*attend_codes)(const AttendCodesArgs& args);
  void (*attend_rows)(const AttendRowsArgs& args);

  // ranges: [num_groups][2][16]: (max - min) / (2^bits - 1), 0 when negligible, and min.
  void (*value_ranges)(const ValueCodesArgs& args, const float* tile, float* ranges);
  // Quantises one tile by the rounded scales and minima of `args.lines` into rows of `codes`.
  void (*quantize_values)(const ValueCodesArgs& args, const float* tile, uint32_t num_tokens,
                          uint8_t* codes);
  void (*decode_values)(const DecodeValuesArgs& args);
};

extern const KernelTable kScalarKernels;
extern const KernelTable kAvx2Kernels;
extern const KernelTable kAvx512Kernels;

// The kernels of a supported instruction set (isa.cc).
const KernelTable& KernelsOf(Isa isa);

}  // namespace sketchkv
