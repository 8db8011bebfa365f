#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

// The codec on a GPU: what crosses the border between host code and CUDA files. Plain structs,
// device pointers and a stream; nothing here synchronises, allocates or logs.
namespace sketchkv::cuda {

// Dimensions, sign bits and queries of the tuned kernels.
constexpr uint32_t kDim = 128;           // head_dim and value_dim
constexpr uint32_t kMaxQueries = 8;      // a kv head, in one launch
constexpr uint32_t kStepTiles = 4;       // tiles a warp works on at a time
constexpr uint32_t kMaxKeyBlocks = 2;    // blocks of head_dim rows of the projection
constexpr uint32_t kMaxSequences = 128;  // of one launch

// How a key's planes are read.
enum class KeyKind : uint32_t {
  kSigns,      // 256 sign bits: qjl
  kTwoBits,    // 128 codes of two bits: qjl2p
  kThreeBits,  // 128 codes of three bits: qjl3p
};
// How a value's codes are scaled. Both have two bits.
enum class ValueKind : uint32_t {
  kRotated,  // Lloyd-Max levels, one scale a token
  kRanges,   // min-max: scale and zero a token and 32 channels
};

// A cell as the tuned kernels see it (kernels/format.h): bytes from its start.
struct CellPlan {
  KeyKind key_kind;
  ValueKind value_kind;
  uint32_t block_tiles_log2;  // tiles of sixteen tokens a block
  uint32_t scales;
  uint32_t planes;
  uint32_t values;
  uint32_t ranges;
  // Sign diagonals of the Hadamard projections: bit c % 32 of word c / 32 is set where channel c
  // changes its sign. Keys: one for each head_dim rows.
  uint32_t key_signs[kMaxKeyBlocks][kDim / 32];
  uint32_t value_signs[kDim / 32];
};

// The tokens of one sequence that are queried: [token_begin, token_end) of its chain.
struct Sequence {
  uint32_t first_block;  // of its block table, in ChainArgs::slots
  uint32_t token_begin;
  uint32_t token_end;
  // Steps of 64 tokens of the sequences before it. A step begins at a multiple of 64 tokens of the
  // chain; a sequence of no tokens has one all the same. Behind its last token a sequence may have
  // steps of no tokens, so that its last share is whole.
  uint32_t first_step;
};

// Thread blocks that a card runs at a time. A wide one has as many warps as a multiprocessor runs,
// so that there are fewer partials to merge; but while it begins, nothing else runs in its place.
struct ThreadBlocks {
  uint32_t narrow;
  uint32_t wide = 0;  // 0: none
};

// Which cells a launch reads, and how. The steps of all (sequence, kv head) pairs in a row are
// dealt out to thread blocks, `share` to each.
struct ChainArgs {
  const uint8_t* const* slots;  // device memory: where each block of each sequence lies
  // With the launch, so that no thread block waits for them; behind the last only first_step
  // counts.
  Sequence sequences[kMaxSequences + 1];
  uint32_t num_sequences;
  uint32_t num_kv_heads;
  uint32_t share;
  uint32_t num_thread_blocks;
  bool wide;           // LaunchAttend: its thread blocks are wide ones
  size_t cell_offset;  // of kv head 0's cell in a slot
  size_t cell_stride;  // from head to head
};

// Queries from where callers have them, on the card or in pinned memory of the host, to where a
// launch reads them: so that none of them changes once it was looked at, and no copy engine takes
// its turn. Of the next launch, what does not look at them may begin meanwhile.
constexpr uint32_t kMaxGatherPieces = 64;  // of one launch
struct GatherArgs {
  // Rows row_begin to row_begin + num_rows of each kv head of [rows / group][num_heads][group][dim]
  // go to [num_heads][num_rows][dim].
  struct Piece {
    const float* from;
    float* to;
    uint32_t* not_finite;  // set to 1 if a number is not; may be pinned memory of the host
    uint32_t num_heads;
    uint32_t group;
    uint32_t row_begin;
    uint32_t num_rows;
    uint32_t dim;
  } pieces[kMaxGatherPieces];
  uint32_t num_pieces;
};

struct AttendArgs {
  ChainArgs chain;
  const float* queries;  // [num_sequences][num_kv_heads][num_queries][kDim]
  uint32_t num_queries;  // a kv head, at most kMaxQueries
  float softmax_scale;
  float logit_softcap;  // 0: none
  // [num_thread_blocks + num_sequences * num_kv_heads][kPartialFloats], and zeros
  // [num_sequences][num_kv_heads], which a launch leaves zeros.
  float* partials;
  uint32_t* arrivals;
  float* out;  // [num_sequences][num_kv_heads][num_queries][kDim]
  float* lse;  // [num_sequences][num_kv_heads][num_queries]
  // Looks for slots and cells before the launch before this one in the stream has ended: they were
  // there when that one, a LaunchAttend or LaunchGather, began. Queries may be its results.
  bool begins_early;
};
// Outputs, maxima and sums of what a thread block does of a (sequence, kv head).
constexpr uint32_t kPartialFloats = kMaxQueries * (kDim + 2);

struct ScoreArgs {
  ChainArgs chain;
  const float* queries;  // as AttendArgs
  uint32_t num_queries;
  // [num_sequences][num_kv_heads][num_queries][stride]: the score of token t of a sequence at
  // t - (token_begin rounded down to 64). Tokens that share a step with tokens asked for are
  // written too. Floats, or halves, rounded to nearest: infinite where a score is beyond 65,504.
  void* scores;
  size_t stride;
  bool as_halves;
};

// The code book of one kind of codes (kernels/code_book.h).
constexpr uint32_t kTrials = 9;        // units tried
constexpr uint32_t kBins = 48;         // magnitudes that the search tells apart; more is as much
constexpr uint32_t kLargestSteps = 3;  // rises of the level with the magnitude, of three bits
struct CodePlan {
  float levels[8];
  uint32_t thresholds[8];  // their bits without the sign, shifted to the left by one
  // The search for a unit: the level of magnitude 0, and at which magnitude it rises by what.
  uint32_t base[kTrials];
  struct Step {
    uint32_t at, rise, square_rise;
  } steps[kTrials][kLargestSteps];
};
// What encoding and decoding need to know.
struct CodecPlan {
  CellPlan cell;
  bool exact_key_scale;  // else by the norm (signs) or least squares (codes)
  bool exact_value_scale;
  CodePlan keys;    // kTwoBits; kThreeBits: of the codes that have a nibble
  CodePlan spread;  // kThreeBits: of the others
  CodePlan values;  // kRotated
  float unit_factors[kTrials];
  float key_search_dot, key_search_square;
  float value_search_dot, value_search_square;
};

// Numbers of DType (kernels/layout.h).
enum class RowType : uint32_t { kBf16 = 1, kFp16 = 2, kFp32 = 3 };

// One cell to encode or decode: rows of kDim numbers, at least 16-byte aligned.
struct CellRows {
  uint8_t* keys;
  uint8_t* values;
  uint8_t* cell;  // 16-byte aligned
  uint32_t num_tokens;
};

struct EncodeArgs {
  const CellRows* cells;  // device memory; rows are only read
  uint32_t num_cells;
  RowType type;
  size_t key_stride, value_stride;  // from token to token, multiples of 16
  // [num_cells], zeros before. Afterwards, of keys and of values: the bits of the largest
  // magnitude, and of the first number that is not finite 2^32 - 1 - (token * kDim + channel), or
  // 0. Such a cell holds nothing.
  struct Checks {
    uint32_t largest[2];
    uint32_t not_finite[2];
  };
  Checks* checks;
};

struct DecodeArgs {
  const CellRows* cells;  // device memory; cells are only read. Rows that are null are left out
  uint32_t num_cells;
  RowType type;
  size_t key_stride, value_stride;
};

// A cell to make a checksum of.
struct StoredCell {
  const uint8_t* cell;  // 16-byte aligned
  uint64_t seed;        // of its checksum
  uint32_t bytes;       // a multiple of 64, not 0
};

struct ChecksumArgs {
  const StoredCell* cells;  // device memory
  uint32_t num_cells;
  uint32_t* checksums;  // [num_cells]: the lower half of XXH3, 64 bits, with the cell's seed
};

// Those of LaunchAttend on the current device.
cudaError_t AttendBlocks(ThreadBlocks* blocks);
// Results are there when the stream has come so far.
cudaError_t LaunchGather(const GatherArgs& args, cudaStream_t stream);
// Relative error below 1e-3 of the CPU's (README.md).
cudaError_t LaunchAttend(const CellPlan& plan, const AttendArgs& args, cudaStream_t stream);
cudaError_t LaunchScore(const CellPlan& plan, const ScoreArgs& args, cudaStream_t stream);
// Bytes equal to the CPU's, both ways.
cudaError_t LaunchEncode(const CodecPlan& plan, const EncodeArgs& args, cudaStream_t stream);
cudaError_t LaunchDecode(const CodecPlan& plan, const DecodeArgs& args, cudaStream_t stream);
// Of cells of any model.
cudaError_t LaunchChecksum(const ChecksumArgs& args, cudaStream_t stream);

}  // namespace sketchkv::cuda
