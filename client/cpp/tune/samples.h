#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "client/cpp/files/safetensors.h"
#include "kernels/layout.h"

namespace sketchkv::tune {

// Tokens [begin, end) of the samples.
struct TokenRange {
  uint64_t begin = 0;
  uint64_t end = 0;

  [[nodiscard]] uint64_t size() const { return end - begin; }
  bool operator==(const TokenRange&) const = default;
};

// Sample keys, queries and values of a model: a safetensors file with, for each layer,
//   layers.{l}.keys     [tokens, kv_heads, head_dim]   as they are cached
//   layers.{l}.queries  [tokens, q_heads, head_dim]    as they meet the keys
//   layers.{l}.values   [tokens, kv_heads, value_dim]
// in F32, F16 or BF16, and perhaps sequence_starts I64 [n]: the tokens where sequences begin, the
// first 0. Query head i belongs to kv head i / (q_heads / kv_heads). Read-only and thread-safe.
class Samples {
 public:
  // INVALID_ARGUMENT naming the tensor and both numbers; otherwise as SafetensorsFile::Open.
  [[nodiscard]] static absl::StatusOr<Samples> Open(const std::string& path);

  [[nodiscard]] uint32_t num_layers() const { return num_layers_; }
  [[nodiscard]] uint32_t num_kv_heads() const { return num_kv_heads_; }
  [[nodiscard]] uint32_t queries_per_kv_head() const { return queries_per_kv_head_; }
  [[nodiscard]] uint32_t head_dim() const { return head_dim_; }
  [[nodiscard]] uint32_t value_dim() const { return value_dim_; }
  [[nodiscard]] uint64_t num_tokens() const { return num_tokens_; }
  // Of the cached rows: fp16 for keys in F16, else bf16.
  [[nodiscard]] DType key_dtype() const { return key_dtype_; }
  [[nodiscard]] DType value_dtype() const { return value_dtype_; }
  // In order, without gaps, none empty.
  [[nodiscard]] std::span<const TokenRange> sequences() const { return sequences_; }

  // Rows of one kv head, packed: [tokens, dim], rounded to the dtype of the cache; queries
  // [tokens, queries_per_kv_head, head_dim] as they are. INVALID_ARGUMENT naming tensor and token
  // for NaN and Inf.
  [[nodiscard]] absl::StatusOr<std::vector<float>> Keys(uint32_t layer, uint32_t head,
                                                        TokenRange tokens) const;
  [[nodiscard]] absl::StatusOr<std::vector<float>> Values(uint32_t layer, uint32_t head,
                                                          TokenRange tokens) const;
  [[nodiscard]] absl::StatusOr<std::vector<float>> Queries(uint32_t layer, uint32_t head,
                                                           TokenRange tokens) const;

 private:
  struct Layer {
    const NamedTensor* keys = nullptr;
    const NamedTensor* queries = nullptr;
    const NamedTensor* values = nullptr;
  };

  explicit Samples(SafetensorsFile file) : file_(std::move(file)) {}
  [[nodiscard]] absl::Status Index();
  [[nodiscard]] absl::Status IndexLayer(uint32_t layer);
  [[nodiscard]] absl::Status IndexSequences();

  SafetensorsFile file_;
  std::vector<Layer> layers_;
  std::vector<TokenRange> sequences_;
  uint32_t num_layers_ = 0;
  uint32_t num_kv_heads_ = 0;
  uint32_t queries_per_kv_head_ = 0;
  uint32_t head_dim_ = 0;
  uint32_t value_dim_ = 0;
  uint64_t num_tokens_ = 0;
  DType key_dtype_ = DType::kBf16;
  DType value_dtype_ = DType::kBf16;
};

// What the tables are made from, and what their error is measured on.
struct Split {
  std::vector<TokenRange> calibration;
  std::vector<TokenRange> held_out;
};

// Holds out the last `fraction` (0 to 1, both excluded) of the tokens: whole sequences where a
// sequence begins near there, else the end of one, which then counts as a sequence of its own.
[[nodiscard]] Split SplitSamples(std::span<const TokenRange> sequences, double fraction);

[[nodiscard]] uint64_t NumTokens(std::span<const TokenRange> ranges);

// Rows as the codec takes them: `numbers` in `dtype` (bf16, fp16 or fp32).
[[nodiscard]] std::vector<std::byte> ToElements(std::span<const float> numbers, DType dtype);

}  // namespace sketchkv::tune
