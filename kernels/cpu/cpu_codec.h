#pragma once

#include <array>
#include <memory>
#include <string>
#include <vector>

#include "kernels/codec.h"
#include "kernels/cpu/kernel_table.h"
#include "kernels/format.h"
#include "kernels/projection.h"

namespace sketchkv {

// One query in a codec's terms: what PrepareQueries keeps of it.
class CpuQueries final : public PreparedQueries {
 public:
  CpuQueries(uint32_t num_queries, size_t row, size_t projected_row)
      : PreparedQueries(num_queries),
        row_(row),
        projected_row_(projected_row),
        exponents_(num_queries),
        queries_(num_queries * row),
        projected_(num_queries * projected_row) {}

  // Raw keys: q, padded with zeros to lanes. Sketch: q / 2^exponent, so that its largest number is
  // in [1, 2) and nothing overflows.
  [[nodiscard]] float* query(uint32_t q) { return queries_.data() + q * row_; }
  [[nodiscard]] const float* query(uint32_t q) const { return queries_.data() + q * row_; }
  // -S q / 2^exponent, [sign_bits].
  [[nodiscard]] float* projected(uint32_t q) { return projected_.data() + q * projected_row_; }
  [[nodiscard]] const float* projected(uint32_t q) const {
    return projected_.data() + q * projected_row_;
  }
  [[nodiscard]] int exponent(uint32_t q) const { return exponents_[q]; }
  void set_exponent(uint32_t q, int exponent) { exponents_[q] = exponent; }

 private:
  size_t row_;
  size_t projected_row_;
  std::vector<int> exponents_;
  std::vector<float> queries_;
  std::vector<float> projected_;
};

// The codec of a cell on the CPU, for any instruction set. Encode in cpu_encode*.cc, Decode in
// cpu_decode.cc, queries in cpu_query.cc, Validate in cpu_validate.cc.
class CpuCellCodec final : public CellCodec {
 public:
  // `layout` and `profile` are valid and fit each other; `kernels` are supported by this CPU.
  CpuCellCodec(const KvLayout& layout, CodecProfile profile, const KernelTable& kernels);

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
  void Score(std::span<const std::byte> cell, uint32_t token_begin, uint32_t token_end,
             const PreparedQueries& queries, float* scores, size_t scores_stride) const override;
  [[nodiscard]] AttentionPartial NewPartial(uint32_t num_queries) const override;
  void Attend(std::span<const std::byte> cell, uint32_t token_begin, uint32_t token_end,
              const PreparedQueries& queries, const AttentionOptions& options,
              AttentionPartial* partial) const override;
  void Finish(const AttentionPartial& partial, float* out, float* lse) const override;

  [[nodiscard]] std::span<const float> dense_projection() const;

 private:
  struct Scores;       // cpu_query.cc
  struct SketchState;  // cpu_encode_keys.cc

  [[nodiscard]] RowsArgs KeyRows(RowsView view) const;
  [[nodiscard]] RowsArgs ValueRows(RowsView view) const;
  // Of a raw cell: its key rows, and its value rows (the key rows under kKeyPrefix).
  [[nodiscard]] RowsArgs StoredKeyRows(const uint8_t* cell) const;
  [[nodiscard]] RowsArgs StoredValueRows(const uint8_t* cell) const;
  [[nodiscard]] ValueCodesArgs ValueCodes(const uint8_t* cell, int scale_exponent,
                                          int minimum_exponent) const;

  // Rows to tiles divided by 2^exponent, so that the largest number is in [1, 2).
  [[nodiscard]] absl::Status LoadTiles(const RowsArgs& rows, absl::string_view what, uint32_t dim,
                                       uint32_t num_tokens, float* tiles, int* exponent) const;
  void EncodeKeys(float* tiles, uint32_t num_tiles, int exponent, CellHeader* header,
                  uint8_t* cell) const;
  void EncodeValues(const float* tiles, uint32_t num_tokens, int exponent, CellHeader* header,
                    uint8_t* cell) const;
  // A kind's numbers to fp16 with one exponent, which is returned; `values` becomes what a reader
  // will see. count: a multiple of 16.
  int StoreHalves(float* values, size_t count, uint8_t* out) const;
  void ChooseChannels(SketchState* state, uint32_t group, uint8_t* cell) const;
  void SketchTile(SketchState* state, uint32_t tile, uint8_t* cell) const;
  int StoreResiduals(SketchState* state, int key_exponent, uint8_t* cell) const;

  void DecodeKeyTile(const uint8_t* cell, const CellHeader& header, uint32_t tile,
                     float* keys) const;
  void AddOutliers(const uint8_t* cell, const CellHeader& header, uint32_t tile, float* keys) const;
  void DecodeKeys(const uint8_t* cell, uint32_t num_tokens, DType dtype, MutableRowsView out) const;
  void DecodeValues(const uint8_t* cell, uint32_t num_tokens, DType dtype,
                    MutableRowsView out) const;

  void ScoreTiles(const uint8_t* cell, uint32_t tile_begin, uint32_t tile_end,
                  const CpuQueries& queries, uint32_t first_query, Scores* scores) const;
  void ScoreGroups(const uint8_t* cell, const CellHeader& header, const CpuQueries& queries,
                   uint32_t first_query, ScoreSignsArgs args) const;
  void ScoreTokens(const uint8_t* cell, uint32_t token_begin, uint32_t token_end,
                   const CpuQueries& queries, uint32_t first_query, Scores* scores) const;
  void AttendValues(const uint8_t* cell, uint32_t token_begin, uint32_t token_end,
                    uint32_t first_query, const Scores& scores, AttentionPartial* partial) const;

  KvLayout layout_;
  CodecProfile profile_;
  CellFormat format_;
  const KernelTable& kernels_;
  std::unique_ptr<const ProjectionMatrix> projection_;  // null for raw keys
  std::vector<float> columns_;  // second sketch: S transposed, [head_dim][sign_bits]
  std::vector<float> key_fp8_;  // [256] with the scale; empty unless fp8
  std::vector<float> value_fp8_;
};

// 2^exponent in three factors.
[[nodiscard]] Pow2Factors MakePow2(int exponent);
[[nodiscard]] CellHeader ReadHeader(const uint8_t* cell);
[[nodiscard]] uint16_t ReadU16(const uint8_t* p);
void WriteU16(uint8_t* p, uint16_t value);
// Of numbers that stand for x * 2^(local + cell); 0 when there is none but 0.
[[nodiscard]] inline int16_t HeaderExponent(int local, int cell) {
  return static_cast<int16_t>(local == 0 ? 0 : local + cell);
}

}  // namespace sketchkv
