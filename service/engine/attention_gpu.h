#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "service/engine/attention.h"
#include "service/engine/attention_shape.h"

namespace sketchkv {

// Query `run` of an item on the card.
[[nodiscard]] GpuQuery QueryOf(const AttentionRequest& request, const ItemShape& shape, size_t item,
                               const GpuRun& run);

// What the card answers of an attention request. Runs beside the host's units, which write to the
// same answer; Merge is for when both are done.
class GpuPartials {
 public:
  // All referred to outlive it; allocates nothing.
  GpuPartials(const AttentionRequest& request, const AttentionTargets& targets,
              const std::vector<ItemShape>& shapes);

  [[nodiscard]] bool empty() const { return num_runs_ == 0; }
  // Of partials, beside the answer.
  [[nodiscard]] uint64_t size_bytes() const { return floats_ * sizeof(float); }

  // What the host does not write goes to `answer` directly. `place`: of queries and answer; on the
  // card only where size_bytes() is 0.
  [[nodiscard]] absl::Status Compute(Gpu* gpu, std::span<float> answer, Place place);
  void Merge(std::span<float> answer) const;

 private:
  // Runs of an item that have numbers of their own: all but the first where the host has no part.
  [[nodiscard]] size_t FirstOwn(size_t item) const;

  const AttentionRequest& request_;
  const AttentionTargets& targets_;
  const std::vector<ItemShape>& shapes_;
  size_t num_runs_ = 0;
  size_t floats_ = 0;
  std::vector<float> partials_;  // item after item, run after run, as the item in the answer
};

}  // namespace sketchkv
