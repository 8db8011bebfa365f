#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "client/cpp/examples/past_kv.h"

namespace sketchkv::example {

// What config.json says (Hugging Face's names for a Llama model).
struct TinyLmConfig {
  uint32_t hidden = 0;
  uint32_t layers = 0;
  uint32_t query_heads = 0;
  uint32_t kv_heads = 0;
  uint32_t head_dim = 0;
  uint32_t feed_forward = 0;
  uint32_t vocab = 0;    // 256: tokens are bytes
  uint32_t context = 0;  // most tokens of a sequence
  float rope_theta = 0.0f;
  float rms_eps = 0.0f;

  [[nodiscard]] KvShape kv_shape() const { return {layers, query_heads, kv_heads, head_dim}; }
};

// A byte-level Llama in float32: embeddings, RMS norm, grouped-query attention with RoPE, SwiGLU,
// tied output. Immutable and thread-safe after Load.
class TinyLm {
 public:
  // Reads config.json and model.safetensors of `dir`. NOT_FOUND: no such file; INVALID_ARGUMENT: a
  // field, tensor or shape is missing or does not fit (named).
  [[nodiscard]] static absl::StatusOr<std::unique_ptr<TinyLm>> Load(const std::string& dir);

  [[nodiscard]] const TinyLmConfig& config() const { return config_; }

  // Continues a sequence by `tokens`, all positions together layer by layer. The tokens before them
  // are first those of `past` (may be null: none), then those of `recent`; the new ones' keys and
  // values are appended to `recent`. Attention over `past` is what past->Attend returns, merged by
  // log-sum-exp with exact causal attention over `recent`.
  // logits: [tokens.size(), vocab]. INVALID_ARGUMENT: no token, or more than the context holds;
  // else what `past` says.
  [[nodiscard]] absl::Status Forward(std::span<const uint8_t> tokens, PastKv* past, LocalKv* recent,
                                     std::vector<float>* logits) const;

 private:
  // Weights are kept transposed, [in, out], for MultiplyAdd.
  struct Layer {
    std::vector<float> input_norm, post_norm;  // [hidden]
    std::vector<float> q, k, v;                // [hidden, heads * head_dim]
    std::vector<float> o;                      // [query_heads * head_dim, hidden]
    std::vector<float> gate, up;               // [hidden, feed_forward]
    std::vector<float> down;                   // [feed_forward, hidden]
  };

  TinyLm() = default;
  [[nodiscard]] absl::Status AttentionBlock(uint32_t layer, uint32_t first_position, PastKv* past,
                                            LocalKv* recent, std::vector<float>* x) const;
  void FeedForwardBlock(uint32_t layer, std::vector<float>* x) const;

  TinyLmConfig config_;
  std::vector<float> embedding_;   // [vocab, hidden]
  std::vector<float> output_;      // [hidden, vocab], the same transposed
  std::vector<float> final_norm_;  // [hidden]
  std::vector<Layer> layers_;
};

}  // namespace sketchkv::example
