#include "service/engine/attention_target.h"

#include <algorithm>

namespace sketchkv {
namespace {

GpuRun RunOf(const AttentionTarget& target, size_t first, size_t last, const TokenRange& tokens) {
  const auto first_token = static_cast<uint32_t>(target.pins->token_begin()[first]);
  auto blocks = std::make_shared<GpuBlocks>();
  blocks->slots = target.pins->gpu().subspan(first, last - first);
  blocks->owner = target.pins;
  blocks->lasting = target.leased;
  return {.blocks = std::move(blocks),
          .first_token = tokens.begin,
          .token_begin = tokens.begin - first_token,
          .token_end = tokens.end - first_token};
}

}  // namespace

// Looks at the ends of runs, not at thousands of blocks.
void DealOutTokens(bool use_gpu, AttentionTarget* target) {
  target->host_ranges.clear();
  target->gpu_runs.clear();
  if (!use_gpu || target->token_begin == target->token_end) {
    target->host_ranges.push_back({target->token_begin, target->token_end});
    return;
  }
  const auto block_begin = target->pins->token_begin();
  const auto run_ends = target->pins->run_ends();
  const auto block_of = [block_begin](uint32_t token) -> size_t {
    return std::upper_bound(block_begin.begin(), block_begin.end(), token) - block_begin.begin() -
           1;
  };
  size_t first = block_of(target->token_begin);
  const size_t end = block_of(target->token_end - 1) + 1;
  for (auto run = std::upper_bound(run_ends.begin(), run_ends.end(), first); first < end; ++run) {
    const size_t last = std::min(*run, end);
    const TokenRange tokens = {
        static_cast<uint32_t>(std::max<uint64_t>(target->token_begin, block_begin[first])),
        static_cast<uint32_t>(std::min<uint64_t>(target->token_end, block_begin[last]))};
    if (target->pins->gpu()[first] == nullptr) {
      target->host_ranges.push_back(tokens);
    } else {
      target->gpu_runs.push_back(RunOf(*target, first, last, tokens));
    }
    first = last;
  }
}

}  // namespace sketchkv
