#include "service/engine/attention_target.h"

#include <algorithm>

namespace sketchkv {
namespace {

// The tokens [begin, end) of the blocks [first, last), which all have a copy. A short block ends a
// run: the card counts tokens by full blocks.
void AddRuns(const AttentionTarget& target, uint32_t block_tokens, size_t first, size_t last,
             std::vector<GpuRun>* runs) {
  const auto block_begin = target.pins->token_begin();
  while (first < last) {
    size_t next = first + 1;
    while (next < last && block_begin[next] - block_begin[next - 1] == block_tokens) ++next;
    auto blocks = std::make_shared<GpuBlocks>();
    blocks->slots = target.pins->gpu().subspan(first, next - first);
    blocks->owner = target.pins;
    blocks->lasting = target.leased;
    const uint64_t begin = std::max<uint64_t>(target.token_begin, block_begin[first]);
    const uint64_t end = std::min<uint64_t>(target.token_end, block_begin[next]);
    runs->push_back({.blocks = std::move(blocks),
                     .first_token = static_cast<uint32_t>(begin),
                     .token_begin = static_cast<uint32_t>(begin - block_begin[first]),
                     .token_end = static_cast<uint32_t>(end - block_begin[first])});
    first = next;
  }
}

}  // namespace

void DealOutTokens(bool use_gpu, uint32_t block_tokens, AttentionTarget* target) {
  target->host_ranges.clear();
  target->gpu_runs.clear();
  if (!use_gpu || target->token_begin == target->token_end) {
    target->host_ranges.push_back({target->token_begin, target->token_end});
    return;
  }
  const auto block_begin = target->pins->token_begin();
  const auto gpu = target->pins->gpu();
  const auto after = std::upper_bound(block_begin.begin(), block_begin.end(), target->token_begin);
  size_t first = after - block_begin.begin() - 1;
  while (first < gpu.size() && block_begin[first] < target->token_end) {
    const bool on_gpu = gpu[first] != nullptr;
    size_t last = first + 1;
    while (last < gpu.size() && block_begin[last] < target->token_end &&
           (gpu[last] != nullptr) == on_gpu) {
      ++last;
    }
    if (on_gpu) {
      AddRuns(*target, block_tokens, first, last, &target->gpu_runs);
    } else {
      target->host_ranges.push_back(
          {static_cast<uint32_t>(std::max<uint64_t>(target->token_begin, block_begin[first])),
           static_cast<uint32_t>(std::min<uint64_t>(target->token_end, block_begin[last]))});
    }
    first = last;
  }
}

}  // namespace sketchkv
