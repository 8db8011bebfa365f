#pragma once

#include <array>
#include <memory>
#include <string>
#include <vector>

#include "absl/container/fixed_array.h"
#include "kernels/code_book.h"
#include "kernels/codec.h"
#include "kernels/cpu/kernel_table.h"
#include "kernels/format.h"
#include "kernels/projection.h"

namespace sketchkv {

class CellCursor;  // cpu_tiles.h

// What several cells' codecs share: the projections of a profile (those that no table gives).
struct SharedProjections {
  std::shared_ptr<const ProjectionMatrix> keys;    // null for raw keys and a registered basis
  std::shared_ptr<const ProjectionMatrix> values;  // null unless values are rotated
};
[[nodiscard]] SharedProjections MakeProjections(const KvLayout& layout,
                                                const CodecProfile& profile);

// Numbers of one call, written before they are read: on the stack unless they are more than a tile
// of usual heads. A query's preparation takes as long as a few calls of malloc, which has a lock.
using Scratch = absl::FixedArray<float, size_t{128} * kLanes>;

// Makes and holds the integer tables of several queries over planes of `words` words.
class ScoreTables {
 public:
  ScoreTables(size_t num_tables, uint32_t words);

  // Number `index` from a query projected, over 2^exponent. Its bias is 0.
  ScoreTable Build(size_t index, const std::vector<CodeGroup>& groups, const float* projected,
                   int exponent, const KernelTable& kernels);

 private:
  uint32_t words_;
  std::unique_ptr<uint8_t[]> memory_;
  uint8_t* entries_;  // [tables][words][2] lines
  uint8_t* weights_;  // [tables][words][8]
};

// Queries in a codec's terms: what PrepareQueries keeps of them.
class CpuQueries final : public PreparedQueries {
 public:
  // row, projected_row: floats kept of each query; words: of a key's planes.
  CpuQueries(uint32_t num_queries, size_t row, size_t projected_row, uint32_t words);

  // Raw keys: q, padded with zeros to lanes. Else: q / 2^exponent, so that its largest number is
  // in [1, 2) and nothing overflows.
  [[nodiscard]] float* query(uint32_t q) { return queries_.data() + q * row_; }
  [[nodiscard]] const float* query(uint32_t q) const { return queries_.data() + q * row_; }
  // S q / 2^exponent, [sign_bits]; kept for a second sketch only.
  [[nodiscard]] float* projected(uint32_t q) { return projected_.data() + q * projected_row_; }
  [[nodiscard]] const float* projected(uint32_t q) const {
    return projected_.data() + q * projected_row_;
  }
  [[nodiscard]] int exponent(uint32_t q) const { return exponents_[q]; }
  void set_exponent(uint32_t q, int exponent) { exponents_[q] = exponent; }
  // What nibbles of planes add to the scores of q; its bias is <q, registered mean key>.
  [[nodiscard]] const ScoreTable& table(uint32_t q) const { return tables_[q]; }
  [[nodiscard]] ScoreTable& table(uint32_t q) { return tables_[q]; }
  [[nodiscard]] ScoreTables& space() { return space_; }
  // <q, mean>; the mean is divided by its own power of two. In one order, in float: equal on every
  // machine.
  [[nodiscard]] float MeanScore(uint32_t q, const float* mean, uint32_t dim) const;

 private:
  size_t row_;
  size_t projected_row_;
  ScoreTables space_;
  std::vector<int> exponents_;
  std::vector<float> queries_;
  std::vector<float> projected_;
  std::vector<ScoreTable> tables_;
};

// The codec of the cells of one head on the CPU, for any instruction set. Encode in
// cpu_encode*.cc, Decode in cpu_decode.cc, queries in cpu_query.cc and cpu_attend.cc, Validate in
// cpu_validate.cc.
class CpuCellCodec final : public CellCodec {
 public:
  // `layout`, `profile` and `table` are valid and fit each other; `kernels` are supported by this
  // CPU. `table` outlives the codec and may be null when the profile uses none.
  CpuCellCodec(const KvLayout& layout, CodecProfile profile, SharedProjections projections,
               const HeadTable* table, const KernelTable& kernels);

  [[nodiscard]] size_t cell_bytes() const override { return format_.cell_bytes; }
  [[nodiscard]] size_t key_bytes() const override { return format_.key_bytes; }
  [[nodiscard]] size_t value_bytes() const override { return format_.value_bytes; }
  [[nodiscard]] const CodecProfile& profile() const override { return profile_; }

  [[nodiscard]] absl::Status Encode(RowsView keys, RowsView values, uint32_t num_tokens,
                                    std::span<std::byte> cell) const override;
  [[nodiscard]] absl::Status Validate(std::span<const std::byte> cell,
                                      uint32_t num_tokens) const override;
  [[nodiscard]] absl::Status Decode(std::span<const std::byte> cell, uint32_t num_tokens,
                                    DType key_dtype, MutableRowsView keys, DType value_dtype,
                                    MutableRowsView values) const override;
  [[nodiscard]] std::unique_ptr<PreparedQueries> PrepareQueries(
      std::span<const float> queries) const override;
  using CellCodec::Attend;
  using CellCodec::Score;
  void Score(std::span<const CellTokens> cells, const PreparedQueries& queries, float* scores,
             size_t scores_stride) const override;
  [[nodiscard]] AttentionPartial NewPartial(uint32_t num_queries) const override;
  void Attend(std::span<const CellTokens> cells, const PreparedQueries& queries,
              const AttentionOptions& options, AttentionPartial* partial) const override;
  void Finish(const AttentionPartial& partial, float* out, float* lse) const override;

  // Of kOrthogonal and kGaussian.
  [[nodiscard]] std::span<const float> dense_projection() const;

 private:
  struct Tiles;        // cpu_tiles.h
  struct Scores;       // cpu_tiles.h
  struct SketchState;  // cpu_encode_keys.cc

  [[nodiscard]] RowsArgs KeyRows(RowsView view) const;
  [[nodiscard]] RowsArgs ValueRows(RowsView view) const;
  // Of a raw cell: its key rows, and its value rows (the key rows under kKeyPrefix).
  [[nodiscard]] RowsArgs StoredKeyRows(const uint8_t* cell) const;
  [[nodiscard]] RowsArgs StoredValueRows(const uint8_t* cell) const;
  // The mean a table takes out of keys or values; null for none.
  [[nodiscard]] const float* key_mean() const;
  [[nodiscard]] const float* value_mean() const;
  // Coordinates of a value in attention's partials: the channels, or the rows of a basis.
  [[nodiscard]] uint32_t value_rows() const;
  // The outlier channels of group `group` of tokens, as u16 [num_outliers].
  [[nodiscard]] const uint8_t* OutlierChannels(const uint8_t* cell, uint32_t group) const;

  // Rows, less `mean`, to tiles divided by 2^exponent, so that the largest number is moderate.
  // Loads each number once.
  [[nodiscard]] absl::Status LoadTiles(const RowsArgs& rows, absl::string_view what, uint32_t dim,
                                       const float* mean, uint32_t num_tokens, float* tiles,
                                       int* exponent) const;
  // The rows of `values`, which are next, are fetched meanwhile.
  void EncodeKeys(float* tiles, uint32_t num_tokens, int exponent, const RowsArgs& values,
                  uint8_t* cell) const;
  void EncodeMinMax(const float* tiles, uint32_t num_tokens, int exponent, uint8_t* cell) const;
  void EncodeRotated(float* tiles, uint32_t num_tokens, int exponent, uint8_t* cell) const;
  // One tile of keys or values as scalar codes of its projection: where they come from.
  struct CodesTile {
    std::span<const CodeGroup> groups;
    float unit_energy;
    const ProjectionArgs* projection;
    bool basis;
    const float* x;    // [dim][16]
    float* projected;  // [rows rounded up to dim][16]: room for S x
  };
  // `encode`: of kernels_, keys or values. scales: [16], with the tile's exponent still in them.
  void EncodeCodes(void (*encode)(const EncodeCodesArgs&), const CodesTile& tile, ScaleRule rule,
                   uint32_t num_tokens, uint8_t* out, float* scales) const;
  // Stores x * 2^exponent as scales; `x` [16] becomes what a reader will see, again without
  // 2^exponent.
  void StoreScales(float* x, int exponent, uint8_t* out) const;
  void TakeBlockMean(SketchState* state, uint8_t* cell) const;
  void ChooseChannels(SketchState* state, uint32_t group, uint8_t* cell) const;
  void TakeOutliers(SketchState* state, uint32_t tile) const;
  void SketchKeys(SketchState* state, uint32_t tile, uint8_t* cell) const;
  void EncodeKeyCodes(SketchState* state, uint32_t tile, uint8_t* cell) const;
  void SketchOutliers(SketchState* state, uint32_t tile, uint8_t* cell) const;
  void StoreResiduals(SketchState* state, uint32_t tile, uint8_t* cell) const;

  // Keys of one tile without scale, mean or outliers: S^T z.
  void ReconstructKeys(const uint8_t* cell, uint32_t tile, float* keys) const;
  void DecodeKeyTile(const uint8_t* cell, uint32_t tile, float* keys) const;
  void AddOutliers(const uint8_t* cell, uint32_t tile, float* keys) const;
  void DecodeKeys(const uint8_t* cell, uint32_t num_tokens, DType dtype, MutableRowsView out) const;
  void DecodeValueTile(const uint8_t* cell, uint32_t tile, float* values) const;
  void DecodeValues(const uint8_t* cell, uint32_t num_tokens, DType dtype,
                    MutableRowsView out) const;

  // Takes from the cursor what can be queried together, at least one token; with_values: for
  // attention.
  void GatherTiles(bool with_values, CellCursor* cursor, Tiles* tiles) const;
  // Scores of `tiles`, of num_queries queries: [num_queries][stride]. prefetch: the keys of the
  // tiles ahead, and the values if they were gathered.
  void ScoreTogether(const Tiles& tiles, bool prefetch, const CpuQueries& queries,
                     uint32_t first_query, uint32_t num_queries, float* scores,
                     size_t stride) const;
  void ScoreRawKeys(const CellTokens& tokens, const CpuQueries& queries, uint32_t first_query,
                    uint32_t num_queries, float* scores, size_t stride) const;
  // Of profiles with constants of each block; `args` is complete but for those.
  void ScoreCell(const CellTokens& tokens, const CpuQueries& queries, uint32_t first_query,
                 ScorePlanesArgs args) const;
  void AddResiduals(const CellTokens& tokens, const ScorePlanesArgs& args,
                    const CpuQueries& queries, uint32_t first_query) const;
  void ScoreGroups(const CellTokens& tokens, const CpuQueries& queries, uint32_t first_query,
                   ScorePlanesArgs args) const;
  void AttendTogether(const Tiles& tiles, const CpuQueries& queries, uint32_t first_query,
                      const AttentionOptions& options, Scores* scores,
                      AttentionPartial* partial) const;
  void AttendRawValues(const Tiles& tiles, const Scores& scores, float* const* out) const;
  void WeighTokens(const Tiles& tiles, Scores* scores, size_t offset, float* zeros,
                   AttendCodesArgs* args) const;
  void AttendMinMax(const Tiles& tiles, Scores* scores, AttendCodesArgs args) const;
  void TurnBack(const float* rows, uint32_t num_queries, float* out) const;

  KvLayout layout_;
  CodecProfile profile_;
  CellFormat format_;
  const KernelTable& kernels_;
  const HeadTable* table_;
  std::shared_ptr<const ProjectionMatrix> key_projection_;    // null for raw keys
  std::shared_ptr<const ProjectionMatrix> value_projection_;  // null unless rotated or in a basis
  std::vector<CodeGroup> key_groups_;
  std::vector<CodeGroup> outlier_groups_;  // second sketch
  std::vector<CodeGroup> value_groups_;
  uint32_t value_digits_;  // of the weights that attention gives values
  float key_unit_energy_;
  float value_unit_energy_;
  std::vector<float> columns_;           // second sketch: S transposed, [head_dim][sign_bits]
  std::vector<uint8_t> table_channels_;  // OutlierSource::kTable: u16 [num_outliers]
  std::vector<float> key_fp8_;           // [256] with the scale; empty unless fp8
  std::vector<float> value_fp8_;
};

// Asks for the lines of up to sixteen rows from `token` on, so that they come from memory while
// other work goes on.
void PrefetchTile(const RowsArgs& rows, uint32_t dim, uint32_t token, uint32_t num_tokens);

// Scales [16] of codes z of y = S x. energy: |x|^2, of a basis |y|^2; dot: <y, z>; square: <z, z>;
// row_energy: the squared norm of a row of S.
void CodeScales(ScaleRule rule, const float* energy, const float* dot, const float* square,
                float row_energy, float* scales);

// What the 256 codes of an 8-bit type stand for, with the scale; none of a wider type.
[[nodiscard]] std::vector<float> Fp8Values(DType dtype, float scale);
// The first `rows` rows of S transposed, [dim][rows], by projecting unit vectors: the same numbers
// the kernels multiply by.
[[nodiscard]] std::vector<float> ProjectionColumns(const ProjectionMatrix& projection,
                                                   uint32_t rows, const KernelTable& kernels);

// 2^exponent in three factors.
[[nodiscard]] Pow2Factors MakePow2(int exponent);
[[nodiscard]] uint16_t ReadU16(const uint8_t* p);
void WriteU16(uint8_t* p, uint16_t value);
// x * 2^exponent through the three factors.
[[nodiscard]] inline float ApplyPow2(float x, const Pow2Factors& p) {
  return x * p.f[0] * p.f[1] * p.f[2];
}
// The float of a stored scale, and of a stored bf16 number.
[[nodiscard]] float ScaleToFloat(uint16_t scale);
[[nodiscard]] float Bf16ToFloat(uint16_t bits);
// To nearest even, saturating at the largest finite.
[[nodiscard]] uint16_t FloatToBf16(float x);

}  // namespace sketchkv
