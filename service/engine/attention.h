#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "service/engine/attention_request.h"
#include "service/engine/attention_target.h"
#include "service/engine/executor.h"

namespace sketchkv {

struct ScoreResult {
  uint32_t token_begin = 0;
  uint32_t num_tokens = 0;
  std::vector<float> logits;  // [num_query_tokens * query heads, num_tokens]
};

// Tokens of one partial: long contexts are split at multiples of this and merged in order, so the
// result does not depend on how many threads took part.
inline constexpr uint32_t kAttentionSplitTokens = 4096;

// Writes to `answer` [AnswerFloats], item after item: the outputs [num_query_tokens, query heads,
// value_dim], then the log-sum-exps [num_query_tokens, query heads]. Read again only
// where host and card, or several runs on the card, share an item. targets[i] belongs to
// request.items[i]. CANCELLED and DEADLINE_EXCEEDED when the request stopped being wanted on the
// way: asked before each unit, after which nothing more is written. UNAVAILABLE: the card failed.
// `gpu` may be null where no target has runs on it.
[[nodiscard]] absl::Status ComputeAttention(const AttentionRequest& request,
                                            const AttentionTargets& targets, Executor* executor,
                                            Gpu* gpu, std::span<float> answer);
// One result an item; otherwise the same.
[[nodiscard]] absl::StatusOr<std::vector<ScoreResult>> ComputeScores(
    const AttentionRequest& request, const AttentionTargets& targets, Executor* executor, Gpu* gpu);

}  // namespace sketchkv
