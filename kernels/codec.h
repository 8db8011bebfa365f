#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/isa.h"
#include "kernels/layout.h"
#include "kernels/profile.h"
#include "kernels/tables.h"

namespace sketchkv {

// Version of the stored cell format (kernels/format.h). v1 is read for ever.
inline constexpr uint32_t kFormatVersion = 1;

// Rows of one head: row t of [num_tokens, dim] starts at data + t * stride_bytes, elements of the
// layout's dtype, packed within the row, any alignment.
struct RowsView {
  const std::byte* data = nullptr;
  size_t stride_bytes = 0;
};
struct MutableRowsView {
  std::byte* data = nullptr;
  size_t stride_bytes = 0;
};

// Softmax options of attention, as engines define them.
struct AttentionOptions {
  float softmax_scale = 0.0f;  // logits = softmax_scale * <q, k>
  float logit_softcap = 0.0f;  // > 0: logit = cap * tanh(logit / cap), after the scale; 0: none
};

// Partial attention of num_queries queries over some tokens: a running maximum, sum of
// exponentials and unnormalised output, in the codec's value domain until Finish.
struct AttentionPartial {
  std::vector<float> max;  // [num_queries], -inf before the first token
  std::vector<float> sum;  // [num_queries]
  std::vector<float> out;  // [num_queries, rows of that domain]
};

// Queries of one kv head, projected once and used for every cell of that head and layer.
// Opaque; made by CellCodec::PrepareQueries, used with the same codec only.
class PreparedQueries {
 public:
  virtual ~PreparedQueries() = default;
  [[nodiscard]] uint32_t num_queries() const { return num_queries_; }

 protected:
  explicit PreparedQueries(uint32_t num_queries) : num_queries_(num_queries) {}

 private:
  uint32_t num_queries_;
};

// Some tokens of a cell. `cell` has cell_bytes() bytes.
struct CellTokens {
  const std::byte* cell = nullptr;
  uint32_t token_begin = 0;
  uint32_t token_end = 0;
};

// Encodes, decodes and queries the cells of one kv head of one layer: block_tokens tokens each.
// Immutable and thread-safe. Encoded bytes, scores and attention are equal to the bit on every ISA.
class CellCodec {
 public:
  virtual ~CellCodec() = default;

  // Exact stored size of a cell, a multiple of 64, from layout and profile alone: the same for all
  // heads of a layer.
  [[nodiscard]] virtual size_t cell_bytes() const = 0;
  // Of those, what serves keys and values; the rest is padding, counted in both halves' effective
  // bits in proportion by BlockCodec::BitsPerNumber.
  [[nodiscard]] virtual size_t key_bytes() const = 0;
  [[nodiscard]] virtual size_t value_bytes() const = 0;
  [[nodiscard]] virtual const CodecProfile& profile() const = 0;

  // Encodes tokens [0, num_tokens) and zeroes what stands for the others. `values` is ignored under
  // ValueSource::kKeyPrefix. `cell` has cell_bytes() bytes and may hold anything before.
  // INVALID_ARGUMENT naming token and channel for NaN or Inf (after the fp8 scale); `cell` is then
  // unspecified. Never reads past a row's end.
  [[nodiscard]] virtual absl::Status Encode(RowsView keys, RowsView values, uint32_t num_tokens,
                                            std::span<std::byte> cell) const = 0;

  // Checks a cell that came from outside: finite scales, channel indices in range, zeros wherever
  // nothing is stored. INVALID_ARGUMENT names the field and both numbers. A cell that passes is
  // safe to decode and attend; it says nothing of itself, so that a cell of another model of this
  // size passes too (fingerprints tell those apart).
  [[nodiscard]] virtual absl::Status Validate(std::span<const std::byte> cell,
                                              uint32_t num_tokens) const = 0;

  // Reconstructs tokens [0, num_tokens) as `key_dtype` / `value_dtype` (bf16, fp16 or fp32, or the
  // layout's own dtype when the profile keeps that half raw: those bytes come back unchanged).
  // <q, decoded k> equals Score up to float rounding. Either view's data may be null: skipped.
  // INVALID_ARGUMENT for an fp8 output of a sketched half.
  [[nodiscard]] virtual absl::Status Decode(std::span<const std::byte> cell, uint32_t num_tokens,
                                            DType key_dtype, MutableRowsView keys,
                                            DType value_dtype, MutableRowsView values) const = 0;

  // queries: [num_queries, head_dim], all finite (the caller checked).
  [[nodiscard]] virtual std::unique_ptr<PreparedQueries> PrepareQueries(
      std::span<const float> queries) const = 0;

  // scores[q * scores_stride + i] = <query q, key of the i-th token of `cells`>, cell after cell.
  // No softmax scale. The query's products are rounded once to integers that add at most 2 % to
  // the profile's error and are summed exactly.
  virtual void Score(std::span<const CellTokens> cells, const PreparedQueries& queries,
                     float* scores, size_t scores_stride) const = 0;
  void Score(std::span<const std::byte> cell, uint32_t token_begin, uint32_t token_end,
             const PreparedQueries& queries, float* scores, size_t scores_stride) const {
    const CellTokens one = {cell.data(), token_begin, token_end};
    Score({&one, 1}, queries, scores, scores_stride);
  }

  // Folds the tokens of `cells` into `partial`. Many small cells in one call are as fast as one
  // large cell. The same cells in the same calls give the same bits.
  [[nodiscard]] virtual AttentionPartial NewPartial(uint32_t num_queries) const = 0;
  virtual void Attend(std::span<const CellTokens> cells, const PreparedQueries& queries,
                      const AttentionOptions& options, AttentionPartial* partial) const = 0;
  void Attend(std::span<const std::byte> cell, uint32_t token_begin, uint32_t token_end,
              const PreparedQueries& queries, const AttentionOptions& options,
              AttentionPartial* partial) const {
    const CellTokens one = {cell.data(), token_begin, token_end};
    Attend({&one, 1}, queries, options, partial);
  }
  // out: [num_queries, value_dim] normalised output; lse: [num_queries] natural log-sum-exp of the
  // logits. An empty partial gives zeros and -inf.
  virtual void Finish(const AttentionPartial& partial, float* out, float* lse) const = 0;
};

// Effective bits: stored bytes of a whole block (scales, padding and all) over the numbers it
// holds.
struct BitsPerNumber {
  double keys = 0;
  double values = 0;
  double all = 0;
};

// The cells of one block: where each lies in the slot, and the codec of each. Immutable and
// thread-safe. Owns its CellCodecs; cells of equal profiles that use no tables share one.
class BlockCodec {
 public:
  // `profiles` has one resolved profile a layer; `tables` are what they may use, null for none.
  // INVALID_ARGUMENT when layout, profile and tables do not fit (kKeyPrefix with a sketch, ...).
  [[nodiscard]] static absl::StatusOr<std::unique_ptr<BlockCodec>> Create(
      const KvLayout& layout, std::vector<CodecProfile> profiles, Isa isa,
      std::shared_ptr<const ModelTables> tables = nullptr);

  [[nodiscard]] const KvLayout& layout() const { return layout_; }
  [[nodiscard]] const std::vector<CodecProfile>& profiles() const { return profiles_; }
  [[nodiscard]] const std::shared_ptr<const ModelTables>& tables() const { return tables_; }
  [[nodiscard]] const CellCodec& cell(uint32_t layer, uint32_t head) const {
    return *cells_[size_t{layer} * layout_.num_kv_heads + head];
  }
  // Of each cell of a layer.
  [[nodiscard]] size_t cell_bytes(uint32_t layer) const { return cell(layer, 0).cell_bytes(); }
  [[nodiscard]] size_t slot_bytes() const { return slot_bytes_; }
  // Cells stand in the order [layer][head].
  [[nodiscard]] size_t cell_offset(uint32_t layer, uint32_t head) const {
    return layer_offsets_[layer] + head * cell_bytes(layer);
  }
  [[nodiscard]] BitsPerNumber bits_per_number() const;
  // The m x d rows of the dense projection layer `layer` uses, row-major; empty for kHadamard (its
  // rows follow from the seed alone), kBasis (its rows are in the tables) and for raw keys.
  [[nodiscard]] std::span<const float> dense_projection(uint32_t layer) const;

 private:
  BlockCodec() = default;

  KvLayout layout_;
  std::vector<CodecProfile> profiles_;
  std::shared_ptr<const ModelTables> tables_;
  std::vector<std::shared_ptr<const CellCodec>> cells_;  // [layer][head]
  std::vector<size_t> layer_offsets_;
  size_t slot_bytes_ = 0;
};

}  // namespace sketchkv
