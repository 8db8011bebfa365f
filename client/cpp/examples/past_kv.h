#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"

namespace sketchkv::example {

// Shape of tiny-lm's key/value cache.
struct KvShape {
  uint32_t num_layers = 0;
  uint32_t query_heads = 0;
  uint32_t kv_heads = 0;  // query head h reads kv head h / (query_heads / kv_heads)
  uint32_t head_dim = 0;

  bool operator==(const KvShape&) const = default;
};

// What a forward pass needs of the tokens before its own: attention over them. Keys are there after
// RoPE. The fillings: LocalKv (this process's own arrays, exact), LocalKv filled by FetchPrefix
// (fetched from sketchkv and decoded) and RemotePast (attended where the blocks lie).
class PastKv {
 public:
  virtual ~PastKv() = default;

  [[nodiscard]] virtual uint32_t num_tokens() const = 0;

  // Full (not causal) attention of queries [n, query_heads, head_dim] over all tokens of `layer`,
  // softmax scale 1/sqrt(head_dim). Writes out [n, query_heads, head_dim] and the natural
  // log-sum-exp of the logits, lse [n, query_heads]; zeros and -inf over no tokens.
  [[nodiscard]] virtual absl::Status Attend(uint32_t layer, std::span<const float> queries,
                                            std::span<float> out, std::span<float> lse) = 0;
};

// kBf16: keys and values are rounded to bf16 as they enter, as engines hold them. kNone: float32.
enum class CacheRounding : uint8_t { kBf16, kNone };

// Exact keys and values in this process. Not thread-safe.
class LocalKv final : public PastKv {
 public:
  LocalKv(const KvShape& shape, uint32_t capacity, CacheRounding rounding);

  [[nodiscard]] uint32_t num_tokens() const override { return layers_.back().num_tokens; }
  [[nodiscard]] uint32_t num_tokens(uint32_t layer) const { return layers_[layer].num_tokens; }

  // Appends tokens to one layer: keys and values [n, kv_heads, head_dim]. Requires room for them.
  void Append(uint32_t layer, std::span<const float> keys, std::span<const float> values);
  // The same from bf16, as sketchkv hands out: [n, kv_heads, head_dim] keys, then values.
  void AppendBf16(uint32_t layer, std::span<const std::byte> payload);
  // And back: tokens [begin, begin + count) of one layer, rounded to bf16.
  [[nodiscard]] std::vector<std::byte> ExportBf16(uint32_t layer, uint32_t begin,
                                                  uint32_t count) const;

  [[nodiscard]] absl::Status Attend(uint32_t layer, std::span<const float> queries,
                                    std::span<float> out, std::span<float> lse) override;
  // As Attend, but query token i sees the tokens up to and including `first_token + i` only.
  void AttendCausal(uint32_t layer, uint32_t first_token, std::span<const float> queries,
                    std::span<float> out, std::span<float> lse) const;

 private:
  struct Layer {
    // Keys stand transposed so that logits of many tokens are one product with vector loads.
    std::vector<float> keys;    // [kv_heads, head_dim, capacity]
    std::vector<float> values;  // [kv_heads, capacity, head_dim]
    uint32_t num_tokens = 0;
  };

  // Query token i of head h sees the first min(visible + i * visible_step, num_tokens) tokens.
  void AttendRows(const Layer& layer, uint32_t visible, uint32_t visible_step,
                  std::span<const float> queries, std::span<float> out, std::span<float> lse) const;

  KvShape shape_;
  uint32_t capacity_;
  CacheRounding rounding_;
  std::vector<Layer> layers_;
};

}  // namespace sketchkv::example
