#include "service/engine/attention_request.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"

namespace sketchkv {
namespace {

// Without a branch a number, so that many are looked at at once: what is not finite has all bits of
// its exponent set, and carries into the sign.
bool AllFinite(std::span<const float> numbers) {
  uint32_t carries = 0;
  for (const float number : numbers) {
    carries |= (std::bit_cast<uint32_t>(number) & 0x7FFFFFFFu) + 0x00800000u;
  }
  return carries >> 31 == 0;
}

absl::Status ValidateItem(const AttentionRequest& request, size_t index) {
  const AttentionItem& item = request.items[index];
  const KvLayout& layout = request.model->layout();
  const auto invalid = [index](const auto&... parts) {
    return absl::InvalidArgumentError(absl::StrCat("items[", index, "].", parts...));
  };
  const int targets =
      int{item.tip.has_value()} + int{!item.blocks.empty()} + int{item.lease_id != 0};
  if (targets != 1) return invalid("target: ", targets, " of tip, blocks and lease_id; it needs 1");
  if (item.blocks.size() > 65536)
    return invalid("blocks has ", item.blocks.size(), " of at most 65536");
  if (item.layer >= layout.num_layers) {
    return invalid("layer is ", item.layer, "; the model has ", layout.num_layers);
  }
  if (item.head_count == 0 || item.head_begin >= layout.num_kv_heads ||
      item.head_count > layout.num_kv_heads - item.head_begin) {
    return invalid("head_begin + head_count is ", uint64_t{item.head_begin} + item.head_count,
                   "; the model has ", layout.num_kv_heads);
  }
  if (item.num_query_tokens < 1 || item.num_query_tokens > 1024) {
    return invalid("num_query_tokens is ", item.num_query_tokens, "; it needs 1 to 1024");
  }
  if (item.token_end.has_value() && *item.token_end < item.token_begin) {
    return invalid("token_end is ", *item.token_end, "; token_begin is ", item.token_begin);
  }
  if (!(item.options.softmax_scale > 0) || !std::isfinite(item.options.softmax_scale)) {
    return invalid("softmax_scale is ", item.options.softmax_scale, "; it needs > 0 and finite");
  }
  if (!(item.options.logit_softcap >= 0) || !std::isfinite(item.options.logit_softcap)) {
    return invalid("logit_softcap is ", item.options.logit_softcap, "; it needs >= 0 and finite");
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status ValidateAttention(const AttentionRequest& request) {
  if (request.queries_per_kv_head < 1 || request.queries_per_kv_head > 128) {
    return absl::InvalidArgumentError(absl::StrCat(
        "queries_per_kv_head is ", request.queries_per_kv_head, "; it needs 1 to 128"));
  }
  if (request.items.empty() || request.items.size() > 4096) {
    return absl::InvalidArgumentError(
        absl::StrCat("items has ", request.items.size(), " entries; it needs 1 to 4096"));
  }
  uint64_t floats = 0;
  for (size_t i = 0; i < request.items.size(); ++i) {
    SKETCHKV_RETURN_IF_ERROR(ValidateItem(request, i));
    const AttentionItem& item = request.items[i];
    // At most 4096 * 1024 * 256 * 128 * 576: fits in 64 bits.
    floats += uint64_t{item.num_query_tokens} * item.head_count * request.queries_per_kv_head *
              request.model->layout().head_dim;
  }
  if (floats != request.queries.size()) {
    return absl::InvalidArgumentError(absl::StrCat("queries has ", request.queries.size() * 4,
                                                   " bytes; the items need ", floats * 4));
  }
  if (request.queries_place == Place::kGpu) return absl::OkStatus();  // those the card looks at
  if (AllFinite(request.queries)) return absl::OkStatus();
  for (size_t i = 0; i < request.queries.size(); ++i) {
    if (std::isfinite(request.queries[i])) continue;
    const uint32_t dim = request.model->layout().head_dim;
    return absl::InvalidArgumentError(absl::StrCat("queries has ", request.queries[i], " at row ",
                                                   i / dim, ", channel ", i % dim));
  }
  return absl::OkStatus();
}

uint64_t AnswerFloats(const AttentionRequest& request) {
  uint64_t rows = 0;
  for (const AttentionItem& item : request.items) {
    rows += uint64_t{item.num_query_tokens} * item.head_count * request.queries_per_kv_head;
  }
  return rows * (request.model->layout().value_dim + 1);
}

}  // namespace sketchkv
