#include "service/engine/attention_gpu.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace sketchkv {
namespace {

// Folds a partial answer of some rows into another one: both normalised, with log-sum-exps.
void MergeAnswers(std::span<const float> out, std::span<const float> lse, std::span<float> into_out,
                  std::span<float> into_lse) {
  if (lse.empty()) return;
  const size_t dim = out.size() / lse.size();
  for (size_t row = 0; row < lse.size(); ++row) {
    const float top = std::max(lse[row], into_lse[row]);
    if (top == -std::numeric_limits<float>::infinity()) continue;
    const float keep = std::exp(into_lse[row] - top);
    const float add = std::exp(lse[row] - top);
    const float sum = keep + add;
    for (size_t c = row * dim; c < (row + 1) * dim; ++c) {
      into_out[c] = (into_out[c] * keep + out[c] * add) / sum;
    }
    into_lse[row] = top + std::log(sum);
  }
}

}  // namespace

GpuQuery QueryOf(const AttentionRequest& request, const ItemShape& shape, size_t index,
                 const GpuRun& run) {
  const AttentionItem& item = request.items[index];
  return {.model = request.model,
          .layer = item.layer,
          .head_begin = item.head_begin,
          .head_count = item.head_count,
          .num_query_tokens = item.num_query_tokens,
          .queries_per_kv_head = request.queries_per_kv_head,
          .blocks = run.blocks,
          .token_begin = run.token_begin,
          .token_end = run.token_end,
          .queries = request.queries.data() + shape.query_offset};
}

GpuPartials::GpuPartials(const AttentionRequest& request, const AttentionTargets& targets,
                         const std::vector<ItemShape>& shapes)
    : request_(request), targets_(targets), shapes_(shapes) {
  const uint32_t value_dim = request.model->layout().value_dim;
  for (size_t i = 0; i < targets.size(); ++i) {
    const size_t runs = targets[i]->gpu_runs.size();
    num_runs_ += runs;
    floats_ += (runs - std::min(runs, FirstOwn(i))) * shapes[i].rows * (value_dim + 1);
  }
}

size_t GpuPartials::FirstOwn(size_t item) const {
  return targets_[item]->host_ranges.empty() ? 1 : 0;
}

absl::Status GpuPartials::Compute(Gpu* gpu, std::span<float> answer, Place place) {
  const uint32_t value_dim = request_.model->layout().value_dim;
  partials_.resize(floats_);
  std::vector<GpuAttention> jobs;
  jobs.reserve(num_runs_);
  float* own = partials_.data();
  for (size_t i = 0; i < targets_.size(); ++i) {
    const ItemShape& shape = shapes_[i];
    const std::vector<GpuRun>& runs = targets_[i]->gpu_runs;
    for (size_t r = 0; r < runs.size(); ++r) {
      float* out = answer.data() + shape.out_offset;
      if (r >= FirstOwn(i)) {
        out = own;
        own += shape.rows * (value_dim + 1);
      }
      jobs.push_back({.query = QueryOf(request_, shape, i, runs[r]),
                      .options = request_.items[i].options,
                      .out = out,
                      .lse = out + shape.rows * value_dim});
    }
  }
  return gpu->Attend(jobs, place, request_.patience);
}

void GpuPartials::Merge(std::span<float> answer) const {
  const uint32_t value_dim = request_.model->layout().value_dim;
  std::span<const float> own = partials_;
  for (size_t i = 0; i < targets_.size(); ++i) {
    const ItemShape& shape = shapes_[i];
    for (size_t r = FirstOwn(i); r < targets_[i]->gpu_runs.size(); ++r) {
      const size_t out = shape.rows * value_dim;
      MergeAnswers(own.first(out), own.subspan(out, shape.rows),
                   answer.subspan(shape.out_offset, out),
                   answer.subspan(shape.lse_offset, shape.rows));
      own = own.subspan(out + shape.rows);
    }
  }
}

}  // namespace sketchkv
