#pragma once

#include "kernels/cpu/kernel_table.h"
#include "kernels/cuda/launch.h"

// The general path of the codec on a GPU: every layout and profile. What crosses the border between
// host code and CUDA files, as in kernels/cuda/launch.h.
//
// Sixteen threads are the sixteen lanes of the CPU's kernels, whose bodies they run; such a worker
// takes a tile at a time, in shared memory.
namespace sketchkv::cuda {

enum class GeneralKeys : uint32_t { kRaw, kSketch, kCodes };
enum class GeneralOutliers : uint32_t { kNone, kResidual, kSketch };
enum class GeneralValues : uint32_t { kRaw, kMinMax, kRotated };  // kRotated: or in a basis

// What cells of one head are encoded and read with. Pointers are of the memory the kernels see.
struct GeneralHead {
  ProjectionArgs key_projection;      // unless raw
  ProjectionArgs outlier_projection;  // second sketch
  ProjectionArgs value_projection;    // kRotated
  const CodeGroup* key_groups;
  const CodeGroup* outlier_groups;
  const CodeGroup* value_groups;
  uint32_t num_key_groups, num_outlier_groups, num_value_groups;
  float key_unit_energy, value_unit_energy;
  const float* key_mean;    // [head_dim], of a table; null for none
  const float* value_mean;  // [value_dim], likewise
  const uint8_t* channels;  // u16 [num_outliers] of a table; null where each block has its own
  const float* columns;     // second sketch: S transposed, [head_dim][sign_bits]
  const float* key_fp8;     // [256], with the scale
  const float* value_fp8;
};

// A layer's cells. Offsets are those of CellFormat (kernels/format.h), from the cell's start.
struct GeneralPlan {
  const GeneralHead* heads;  // of the memory the kernels see
  uint32_t num_heads;        // 1: all kv heads are alike

  uint32_t head_dim, value_dim, block_tokens, num_tiles;
  uint32_t key_type, value_type;            // numbers of DType
  uint32_t key_row_bytes, value_row_bytes;  // as stored raw
  bool key_prefix;                          // values are the keys' first channels

  GeneralKeys keys;
  bool exact_key_scale, key_basis, block_mean;
  uint32_t sign_bits, outlier_sign_bits;
  GeneralOutliers outliers;
  uint32_t num_outliers, outlier_groups, outlier_group_tokens;

  GeneralValues values;
  bool exact_value_scale, value_basis;
  uint32_t value_group_size, value_groups;

  uint32_t key_words, outlier_words, value_lines, scale_rows;
  uint32_t key_scale_row, outlier_scale_row, value_scale_row;
  size_t scales_at, mean_at, planes_at, outlier_planes_at, channels_at, residual_scales_at,
      residuals_at, raw_keys_at, values_at, ranges_at, cell_bytes;

  uint32_t value_rows;    // coordinates of values in attention: value_dim, or rows of a basis
  uint32_t worker_bytes;  // scratch of a worker that encodes or decodes
  uint32_t attend_bytes;  // likewise of one that scores or attends
  uint32_t query_floats;  // of a prepared query
  uint32_t partial_floats;
};

// One cell of kv head `head`. Rows are aligned to their numbers, and so are strides; the cell to 16
// bytes.
struct GeneralCell {
  CellRows rows;
  uint32_t head;
};

struct GeneralEncodeArgs {
  const GeneralCell* cells;  // device memory; rows are only read
  uint32_t num_cells;
  size_t key_stride, value_stride;  // from token to token
  // As EncodeArgs::checks; a number's place is token * head_dim + channel, or of value_dim.
  EncodeArgs::Checks* checks;
};

struct GeneralDecodeArgs {
  const GeneralCell* cells;  // device memory; cells are only read. Rows that are null are left out
  uint32_t num_cells;
  // Numbers of DType: bf16, fp16 or fp32, or what is stored if it is raw.
  uint32_t key_type, value_type;
  size_t key_stride, value_stride;
};

// Queries of a launch, any number a kv head. `chain` is dealt out by Schedule, its thread blocks
// being workers: kGeneralWorkers a multiprocessor keep a card busy. Its sequences begin and end
// anywhere, whatever the size of blocks.
constexpr uint32_t kGeneralWorkers = 32;
struct GeneralQueryArgs {
  ChainArgs chain;
  const float* queries;  // [num_sequences][num_kv_heads][num_queries][head_dim]
  uint32_t num_queries;
  float* prepared;  // [num_sequences * num_kv_heads * num_queries][query_floats]
};

struct GeneralScoreArgs {
  GeneralQueryArgs query;
  // [num_sequences][num_kv_heads][num_queries][stride]: the score of token t of a sequence at
  // t - token_begin.
  float* scores;
  size_t stride;
};

struct GeneralAttendArgs {
  GeneralQueryArgs query;
  float softmax_scale;
  float logit_softcap;  // 0: none
  // [num_thread_blocks + num_sequences * num_kv_heads][num_queries][partial_floats]
  float* partials;
  // [num_sequences * num_kv_heads * num_queries][value_rows]; null unless values are rotated.
  float* turned;
  float* out;  // [num_sequences][num_kv_heads][num_queries][value_dim]
  float* lse;  // [num_sequences][num_kv_heads][num_queries]
};

// Results are there when the stream has come so far. Bytes equal to the CPU's, both ways; scores
// and attention as kernels/README.md says.
cudaError_t LaunchGeneralEncode(const GeneralPlan& plan, const GeneralEncodeArgs& args,
                                cudaStream_t stream);
cudaError_t LaunchGeneralDecode(const GeneralPlan& plan, const GeneralDecodeArgs& args,
                                cudaStream_t stream);
cudaError_t LaunchGeneralScore(const GeneralPlan& plan, const GeneralScoreArgs& args,
                               cudaStream_t stream);
cudaError_t LaunchGeneralAttend(const GeneralPlan& plan, const GeneralAttendArgs& args,
                                cudaStream_t stream);

}  // namespace sketchkv::cuda
