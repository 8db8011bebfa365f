#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/codec.h"
#include "service/engine/executor.h"
#include "service/engine/model_registry.h"
#include "service/pool/block_pool.h"

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
  TimePoint deadline = TimePoint::max();
  std::function<bool()> cancelled;  // may be empty
  // Asked once, before anything large is made, whether this many bytes may be held; may be empty.
  std::function<absl::Status(uint64_t)> admit;
};

struct ScoreResult {
  uint32_t token_begin = 0;
  uint32_t num_tokens = 0;
  std::vector<float> logits;  // [num_query_tokens * query heads, num_tokens]
};

// The tokens of one item and the pins on them. Items of equal targets share one.
struct AttentionTarget {
  std::shared_ptr<const ReadPins> pins;
  uint32_t token_begin = 0;  // clamped range
  uint32_t token_end = 0;
};

using AttentionTargets = std::vector<std::shared_ptr<const AttentionTarget>>;

// Tokens of one partial: long contexts are split at multiples of this and merged in order, so the
// result does not depend on how many threads took part.
inline constexpr uint32_t kAttentionSplitTokens = 4096;

// Sizes, ranges and finiteness of a request, before anything is pinned. INVALID_ARGUMENT names the
// field and both numbers.
[[nodiscard]] absl::Status ValidateAttention(const AttentionRequest& request);

// Why the request is no longer wanted (CANCELLED, DEADLINE_EXCEEDED); OK while it is.
[[nodiscard]] absl::Status StillWanted(const AttentionRequest& request);

// How many numbers answer a valid request.
[[nodiscard]] uint64_t AnswerFloats(const AttentionRequest& request);

// Writes to `answer` [AnswerFloats], item after item: the outputs [num_query_tokens, query heads,
// value_dim], then the log-sum-exps [num_query_tokens, query heads]. Each is written once and none
// is read. targets[i] belongs to request.items[i]. CANCELLED and DEADLINE_EXCEEDED when the request
// stopped being wanted on the way: asked before each unit, after which nothing more is written.
[[nodiscard]] absl::Status ComputeAttention(const AttentionRequest& request,
                                            const AttentionTargets& targets, Executor* executor,
                                            std::span<float> answer);
// One result an item; otherwise the same.
[[nodiscard]] absl::StatusOr<std::vector<ScoreResult>> ComputeScores(
    const AttentionRequest& request, const AttentionTargets& targets, Executor* executor);

}  // namespace sketchkv
