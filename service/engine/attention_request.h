#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "kernels/codec.h"
#include "service/engine/gpu.h"
#include "service/engine/model_registry.h"
#include "service/engine/patience.h"
#include "service/pool/block.h"

namespace sketchkv {

// One sequence in one layer. Exactly one of tip, blocks and lease_id names the tokens.
struct AttentionItem {
  std::optional<BlockHash> tip;   // this block and its ancestors
  std::vector<BlockHash> blocks;  // these, in order
  uint64_t lease_id = 0;          // the leased chain
  uint32_t layer = 0;
  uint32_t head_begin = 0;
  uint32_t head_count = 0;  // resolved, inside the model
  uint32_t num_query_tokens = 0;
  uint32_t token_begin = 0;
  std::optional<uint32_t> token_end;  // clamped to the target's tokens
  AttentionOptions options;           // scale resolved
};

struct AttentionRequest {
  std::shared_ptr<const Model> model;
  uint32_t queries_per_kv_head = 1;
  std::vector<AttentionItem> items;
  // Item after item: [num_query_tokens, head_count * queries_per_kv_head, head_dim], all finite.
  std::span<const float> queries;
  // Where these lie, and the memory for the answer.
  Place queries_place = Place::kHost;
  Place answer_place = Place::kHost;
  Patience patience;
  // Asked once, before anything large is made, whether this many bytes may be held; may be empty.
  std::function<absl::Status(uint64_t)> admit;
};

// Sizes, ranges and, of queries on the host, finiteness of a request, before anything is pinned.
// INVALID_ARGUMENT names the field and both numbers.
[[nodiscard]] absl::Status ValidateAttention(const AttentionRequest& request);

// How many numbers answer a valid request.
[[nodiscard]] uint64_t AnswerFloats(const AttentionRequest& request);

}  // namespace sketchkv
