#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cpu/lane_function.h"

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
// block's sign diagonal. y = S x in either form. A dense one may be a registered basis.
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
  const float* mean;        // load_tile takes mean[c] out; null for none
};

struct SketchArgs {
  const ProjectionArgs* projection;
  const float* keys;  // [d][16]
  uint8_t* signs;     // [m / 32][16] u32
  float* energy;      // [16]: |k|^2
  float* dot;         // [16]: <S k, bits>
};

// Where the bits of a run's codes stand in the words of a key. kPacked: side by side, none across a
// word. kNibble: three bits in the lower bits of one nibble each. kSpread: three bits as the
// highest bits of three nibbles each, the code's highest first.
enum class CodePlacement : uint32_t { kPacked, kNibble, kSpread };

// Coordinates that share a number of bits and a unit. Codes ascend with their levels.
struct CodeGroup {
  uint32_t row;   // the first coordinate
  uint32_t rows;  // how many
  uint32_t bits;  // 1-4 of each (min-max values: 2, 4 or 8)
  CodePlacement placement;
  uint32_t place;      // first word of a key's planes, or first line of a tile of values
  float inverse_unit;  // the encoder divides coordinates by the unit before it quantises
  // Of codes from 1 up: what a coordinate, in units, exceeds if its code is not below.
  float thresholds[16];
  float levels[16];  // of all codes, in units of the coordinate; repeated to fill the table
  // The same levels as integers times a unit. Of 8-bit min-max values the code less 128 stands for
  // the level, and there is no table.
  int8_t level_codes[16];
  float level_unit;
  // The search for a key's unit: [kUnitTrials][64] levels by magnitude in steps of 1 / kUnitSteps,
  // and what products of magnitudes and levels, and of levels and levels, weigh in the key.
  const uint8_t* search_levels;
  float search_dot, search_square;
};

// What the encoder tries as multiples of a key's own RMS: Lloyd-Max levels are right for a
// Gaussian of RMS 1, and a finite sample is served better by levels a little nearer or farther.
constexpr uint32_t kUnitTrials = 9;
SKETCHKV_TABLE float kUnitFactors[kUnitTrials] = {0.85f,    0.89375f, 0.9375f,  0.98125f, 1.025f,
                                                  1.06875f, 1.1125f,  1.15625f, 1.2f};
// Steps of the magnitudes it tries them on, a unit.
constexpr float kUnitSteps = 21.0f;
constexpr uint32_t kLargestSearchLevel = 63;

// Scalar codes of one tile of projections, per key (or value) the unit that fits best. Tokens from
// num_tokens up leave zeros.
struct EncodeCodesArgs {
  const CodeGroup* groups;
  uint32_t num_groups;
  uint32_t num_tokens;
  float unit_energy;    // sum over rows of their units squared
  const float* rows;    // [rows of the groups][16], y
  const float* energy;  // [16]: |y|^2
  uint8_t* out;         // planes of keys, lines of values
  float* dot;           // [16]: <y, levels>
  float* square;        // [16]: <levels, levels>
};

// What a query adds to scores, rounded once to integers: of a key whose nibbles have the values x_n
// its score is  step * sum_n weight_n * entry_n[x_n] + base,  times the key's scale. A nibble's
// weight follows its range, so that all are rounded equally well.
struct ScoreTable {
  const uint8_t* entries;  // [words][2][4][16]: nibble 2 j + h of word w at [w][h][j]
  const uint8_t* weights;  // [words][2][4], 1 to kMaxWeight
  float step;
  float base;
  bool has_factors;     // else they are 1
  Pow2Factors factors;  // of the whole score
  float bias;           // what is added to it then
};
constexpr uint32_t kMaxWeight = 63;  // 2 * 255 * 63 * 2 fits 16 bits

// Of one query, projected; what its codes' groups are worth.
struct BuildTableArgs {
  const CodeGroup* groups;
  uint32_t num_groups;
  uint32_t words;
  const float* projected;  // [rows of the groups]
  float* sums;             // scratch [8 * words][16]: what each value of each nibble adds
  float* largest;          // scratch [8 * words, to a multiple of 16]: the largest of each nibble
  uint8_t* entries;
  uint8_t* weights;
  float* step;
  float* base;
};

// Lines from at[tile] on that are prefetched when the tile is scored.
struct PrefetchRun {
  const uint8_t* const* at;
  uint32_t lines;
};
constexpr uint32_t kPrefetchRuns = 3;

struct ScorePlanesArgs {
  const uint8_t* const* planes;  // of each tile: [words][16] u32
  const uint8_t* const* ahead;   // of each tile: planes to prefetch meanwhile; may be its own
  const uint8_t* const* scales;  // of each tile: u16 [16]
  uint32_t words;
  uint32_t num_tiles;
  uint32_t num_queries;  // 1..kQueryTile
  const ScoreTable* tables[kQueryTile];
  PrefetchRun prefetch[kPrefetchRuns];
  bool accumulate;  // add to scores rather than set
  float* scores;    // [num_queries][stride], tile after tile
  size_t stride;
};

// scores += factor * sum_o query_o * scale_o * residual_o
struct ScoreResidualsArgs {
  const uint8_t* residuals;  // int8 [tiles][num_outliers][16]
  const uint8_t* scales;     // u16 [tiles][num_outliers]
  uint32_t num_outliers;
  uint32_t tile_begin, tile_end;
  const float* query;  // [num_outliers]
  Pow2Factors factors;
  float* scores;  // from the first token of tile_begin on
};

// Splits the projection of a query between channels inside and outside `channels`:
// rest = S q - sum_o S[:, o] q_o and chosen = that sum.
struct SplitQueryArgs {
  const float* projected;  // [rows]
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
  float* scores;  // [num_queries][stride], from the first token of token_begin's tile on
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

// Weights of tokens times the tokens' scales, rounded to integers relative to the largest, so that
// sums of them are exact: two digits of 7 bits, or one of 8 for values of at most 2 bits. What the
// one leaves of many small weights would be lost if all were rounded down: a dither of
// equidistributed numbers decides.
constexpr uint32_t kMaxDigits = 127 * 128 + 127;
constexpr uint32_t kMaxDigit = 255;
constexpr uint32_t kDitherTiles = 16;
struct WeighTokensArgs {
  uint32_t num_queries;
  const float* weights;  // [num_queries][stride], tile after tile
  size_t stride;
  const uint8_t* const* scales;  // of each tile: u16 [16], `offset` bytes from here
  size_t offset;
  bool has_zeros;  // i16 [16] zero points stand behind each 16 scales
  uint32_t num_tiles;
  uint32_t num_digits;  // 1 or 2
  const float* dither;  // [kDitherTiles][16] in (-1/2, 1/2)
  uint8_t* digits;      // [num_queries][digits_stride]: [num_tiles][num_digits][16], upper first
  size_t digits_stride;
  // Of each query: weight times scale of the largest integer; the sum of the integers, and of
  // integer times zero point, if has_zeros.
  float* largest;
  float* total;
  float* zeros;
};

// out += largest * sum_t u_t / (the largest integer) * level_t, lane = channel.
struct AttendCodesArgs {
  const CodeGroup* groups;
  uint32_t num_groups;
  const uint8_t* const* lines;  // of each tile: its lines of 64 bytes
  uint32_t num_tiles;
  uint32_t num_queries;
  uint32_t num_digits;
  const uint8_t* digits[kQueryTile];
  float largest[kQueryTile];
  float* out[kQueryTile];  // [rows of all groups]
};

// Min-max values: scale * (code + zero / 16).
struct ValueRangesArgs {
  const CodeGroup* group;
  uint32_t dim, group_size, num_groups, num_tokens;
  Pow2Factors up, down;  // from the tile's unit to the stored one, and back
  const float* tile;     // [dim][16]
  uint8_t* ranges;       // [num_groups] of 64 bytes: u16 scale[16], i16 zero[16]
  uint8_t* lines;        // of the codes; tokens from num_tokens up leave zeros
};

struct AttendRowsArgs {
  RowsArgs rows;
  uint32_t dim;
  uint32_t token_begin, token_end;
  uint32_t num_queries;
  const float* weights;  // [num_queries][stride], from token_begin on
  size_t stride;
  float factor;  // of every weight
  float* out[kQueryTile];
};

// Tiles are float [channel][16], lane = token. No pointer needs alignment.
struct KernelTable {
  const char* name;

  // Rows to a tile; tokens from num_tokens up become zeros. Reads each number once. Returns the
  // largest bit pattern of |x|: orders floats, and NaN and Inf come last.
  uint32_t (*load_tile)(const RowsArgs& rows, uint32_t num_tokens, uint32_t dim, float* tile);
  // A tile to rows of bf16, fp16 or fp32; rounds to nearest even, saturates at the largest finite.
  void (*store_tile)(const float* tile, uint32_t num_tokens, uint32_t dim, uint8_t* out,
                     size_t out_stride, uint32_t out_dtype);
  // tile[c] = tile[c] * scales[i] + mean[c]; a null mean is 0.
  void (*scale_tile)(const float* scales, const float* mean, uint32_t dim, float* tile);
  // count: of 16s.
  void (*multiply)(float* x, size_t count, const Pow2Factors& factors);
  // Scales (kernels/format.h) of 16s of non-negative floats, to nearest even; and back.
  void (*store_scales)(const float* x, size_t count, uint8_t* out);
  void (*load_scales)(const uint8_t* x, size_t count, float* out);
  // energy[c] = sum over tokens of x^2.
  void (*channel_energy)(const float* tiles, uint32_t num_tiles, uint32_t dim, float* energy);

  // energy[i] = |x_i|^2 of each token of a tile, as sketch_tile sums it.
  void (*token_energy)(const float* tile, uint32_t dim, float* energy);

  void (*sketch_tile)(const SketchArgs& args);
  // y: [ceil(m / d) * d][16] (Hadamard) or [m][16] (dense).
  void (*project_tile)(const ProjectionArgs& projection, const float* x, float* y);
  // out[c] = sum_i bits_i S[i][c]
  void (*reconstruct_signs)(const ProjectionArgs& projection, const uint8_t* signs, float* out);
  // out = S^T y; y: [rows of the projection][16].
  void (*back_project)(const ProjectionArgs& projection, const float* y, float* out);

  void (*encode_keys)(const EncodeCodesArgs& args);
  void (*encode_values)(const EncodeCodesArgs& args);
  // Levels of one tile: rows of the groups, [rows][16].
  void (*unpack_keys)(const CodeGroup* groups, uint32_t num_groups, const uint8_t* planes,
                      float* rows);
  void (*unpack_values)(const CodeGroup* groups, uint32_t num_groups, const uint8_t* lines,
                        float* rows);

  void (*build_table)(const BuildTableArgs& args);
  void (*score_planes)(const ScorePlanesArgs& args);
  void (*score_residuals)(const ScoreResidualsArgs& args);
  void (*split_query)(const SplitQueryArgs& args);
  void (*score_rows)(const ScoreRowsArgs& args);
  void (*softmax)(const SoftmaxArgs& args);
  void (*weigh_tokens)(const WeighTokensArgs& args);
  void (*attend_codes)(const AttendCodesArgs& args);
  void (*attend_rows)(const AttendRowsArgs& args);

  void (*value_ranges)(const ValueRangesArgs& args);
  // tile = scale * (tile + zero / 16), by the ranges of its groups of channels; [dim][16].
  void (*scale_ranges)(const uint8_t* ranges, uint32_t group_size, uint32_t dim, float* tile);
};

extern const KernelTable kScalarKernels;
extern const KernelTable kAvx2Kernels;
extern const KernelTable kAvx512Kernels;
extern const KernelTable kAvx512VnniKernels;
extern const KernelTable kNeonKernels;

// The kernels of a supported instruction set (isa.cc).
const KernelTable& KernelsOf(Isa isa);

}  // namespace sketchkv
