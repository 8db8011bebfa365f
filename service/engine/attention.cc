#include "service/engine/attention.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <mutex>

#include "absl/container/fixed_array.h"
#include "kernels/base/status_macros.h"
#include "service/engine/attention_gpu.h"
#include "service/engine/attention_shape.h"

namespace sketchkv {
namespace {

// Query rows of one unit: a projected query may take many times its own bytes.
constexpr uint32_t kMaxUnitRows = 256;

// Numbers of a unit, written before they are read: on the stack unless there are many. Units of
// short contexts are not much longer than the calls of malloc for them, and those share a lock.
using Scratch = absl::FixedArray<float, 2048>;

// One unit of parallel work: some query rows of a kv head of an item over one split of its tokens.
struct Unit {
  uint32_t item = 0;
  uint32_t head = 0;  // counted from the item's head_begin
  uint32_t row_begin = 0;
  uint32_t num_rows = 0;
  uint32_t token_begin = 0;
  uint32_t token_end = 0;
  size_t rows = 0;  // number of these rows of this head: units of other tokens share it
};

// Row (query token t, query head j of kv head h) of [num_query_tokens, query heads].
size_t RowIndex(const AttentionRequest& request, const ItemShape& shape, uint32_t head,
                uint32_t row) {
  const uint32_t group = request.queries_per_kv_head;
  return size_t{row / group} * shape.query_heads + head * group + row % group;
}

const CellCodec& CodecOf(const AttentionRequest& request, const Unit& unit) {
  const AttentionItem& item = request.items[unit.item];
  return request.model->codec->cell(item.layer, item.head_begin + unit.head);
}

// The queries of a unit, gathered: [num_rows, head_dim].
std::unique_ptr<PreparedQueries> PrepareUnit(const AttentionRequest& request,
                                             const ItemShape& shape, const Unit& unit) {
  const uint32_t dim = request.model->layout().head_dim;
  Scratch gathered(size_t{unit.num_rows} * dim);
  for (uint32_t row = 0; row < unit.num_rows; ++row) {
    const float* from = request.queries.data() + shape.query_offset +
                        RowIndex(request, shape, unit.head, unit.row_begin + row) * dim;
    std::copy_n(from, dim, gathered.data() + size_t{row} * dim);
  }
  return CodecOf(request, unit).PrepareQueries(gathered);
}

// The prepared queries of units that differ in their tokens alone: made by the first of them, which
// would otherwise take as long as a thousand tokens of each, and dropped by the last.
class SharedQueries {
 public:
  void AddUser() { ++users_; }  // before any thread uses it

  // Calls use(queries), once for each user. True for the one that ends last: what the others did is
  // done.
  template <typename Prepare, typename Use>
  bool With(const Prepare& prepare, const Use& use) {
    std::call_once(once_, [&] { queries_ = prepare(); });
    use(*queries_);
    if (users_.fetch_sub(1) != 1) return false;
    queries_ = nullptr;
    return true;
  }

 private:
  std::once_flag once_;
  std::unique_ptr<PreparedQueries> queries_;
  std::atomic<uint32_t> users_{0};
};

std::vector<SharedQueries> ShareQueries(const std::vector<Unit>& units) {
  std::vector<SharedQueries> shared(units.empty() ? 0 : units.back().rows + 1);
  for (const Unit& unit : units) shared[unit.rows].AddUser();
  return shared;
}

// The cells of a unit's head that hold its tokens, in order.
std::vector<CellTokens> CellsOf(const Model& model, const AttentionItem& item,
                                const AttentionTarget& target, const Unit& unit) {
  const size_t offset = model.codec->cell_offset(item.layer, item.head_begin + unit.head);
  const auto block_bytes = target.pins->bytes();
  const auto block_begin = target.pins->token_begin();
  std::vector<CellTokens> cells;
  const auto after = std::upper_bound(block_begin.begin(), block_begin.end(), unit.token_begin);
  for (size_t i = after - block_begin.begin() - 1; i < block_bytes.size(); ++i) {
    const auto begin = static_cast<uint32_t>(block_begin[i]);
    if (begin >= unit.token_end) break;
    const uint32_t from = std::max(unit.token_begin, begin) - begin;
    const uint32_t to =
        static_cast<uint32_t>(std::min<uint64_t>(unit.token_end, block_begin[i + 1])) - begin;
    if (from < to) cells.push_back({block_bytes[i].data() + offset, from, to});
  }
  return cells;
}

// A unit and what a partial costs besides its numbers.
constexpr uint64_t kBytesPerUnit = 256;

// How many splits of tokens SplitWork makes for all heads of an item together, at most.
uint64_t NumSplits(const AttentionItem& item, const AttentionTarget& target) {
  uint64_t splits = 0;
  for (const TokenRange& range : target.host_ranges) {
    splits += (range.end - range.begin) / kAttentionSplitTokens + 2;
  }
  return item.head_count * splits;
}

// Of all units of an item, without the numbers of their partials.
uint64_t UnitBytes(const AttentionItem& item, const ItemShape& shape,
                   const AttentionTarget& target) {
  const uint32_t chunks = (shape.rows_per_head + kMaxUnitRows - 1) / kMaxUnitRows;
  return NumSplits(item, target) * chunks * kBytesPerUnit;
}

// In order of item, head, rows, tokens: what is merged stands together.
std::vector<Unit> SplitWork(const AttentionRequest& request, const std::vector<ItemShape>& shapes,
                            const AttentionTargets& targets) {
  std::vector<Unit> units;
  size_t rows = 0;
  const auto split_tokens = [&units](Unit unit, const TokenRange& range) {
    unit.token_begin = range.begin;
    do {
      const uint32_t split = unit.token_begin / kAttentionSplitTokens * kAttentionSplitTokens;
      unit.token_end = static_cast<uint32_t>(
          std::min<uint64_t>(range.end, uint64_t{split} + kAttentionSplitTokens));
      units.push_back(unit);
      unit.token_begin = unit.token_end;
    } while (unit.token_begin < range.end);
  };
  for (uint32_t i = 0; i < request.items.size(); ++i) {
    if (targets[i]->host_ranges.empty()) continue;
    for (uint32_t head = 0; head < request.items[i].head_count; ++head) {
      for (uint32_t row = 0; row < shapes[i].rows_per_head; row += kMaxUnitRows) {
        const uint32_t num_rows = std::min(kMaxUnitRows, shapes[i].rows_per_head - row);
        for (const TokenRange& range : targets[i]->host_ranges) {
          split_tokens(
              {.item = i, .head = head, .row_begin = row, .num_rows = num_rows, .rows = rows},
              range);
        }
        ++rows;
      }
    }
  }
  return units;
}

absl::Status Admit(const AttentionRequest& request, uint64_t bytes) {
  return request.admit ? request.admit(bytes) : absl::OkStatus();
}

// Runs body(unit) for all units, stopping early when the request is no longer wanted, and beside
// them `on_gpu`, if it is there.
template <typename Body>
absl::Status RunUnits(const AttentionRequest& request, size_t num_units, Executor* executor,
                      const std::function<absl::Status()>& on_gpu, const Body& body) {
  std::atomic<bool> stop{false};
  const size_t first = on_gpu ? 1 : 0;
  absl::Status gpu;
  executor->ParallelFor(first + num_units, [&](size_t i) {
    if (stop.load(std::memory_order_relaxed)) return;
    if (!request.patience.Check().ok()) {
      stop.store(true, std::memory_order_relaxed);
      return;
    }
    if (i >= first) return body(i - first);
    gpu = on_gpu();
    if (!gpu.ok()) stop.store(true, std::memory_order_relaxed);
  });
  SKETCHKV_RETURN_IF_ERROR(gpu);
  if (!stop.load()) return absl::OkStatus();
  absl::Status why = request.patience.Check();
  return why.ok() ? absl::CancelledError("cancelled") : why;
}

// Folds `from` into `into`: both unnormalised, in the codec's value domain.
void MergePartial(const AttentionPartial& from, AttentionPartial* into) {
  const size_t rows = into->max.size();
  if (rows == 0) return;
  const size_t dim = into->out.size() / rows;
  for (size_t r = 0; r < rows; ++r) {
    const float top = std::max(into->max[r], from.max[r]);
    if (top == -std::numeric_limits<float>::infinity()) continue;
    const float keep = std::exp(into->max[r] - top);
    const float add = std::exp(from.max[r] - top);
    into->max[r] = top;
    into->sum[r] = into->sum[r] * keep + from.sum[r] * add;
    for (size_t c = 0; c < dim; ++c) {
      into->out[r * dim + c] = into->out[r * dim + c] * keep + from.out[r * dim + c] * add;
    }
  }
}

// The partials of the units of the same rows as units[index], in token order.
std::span<AttentionPartial> PartialsOfRows(const std::vector<Unit>& units, size_t index,
                                           std::vector<AttentionPartial>& partials) {
  size_t begin = index, end = index + 1;
  while (begin > 0 && units[begin - 1].rows == units[index].rows) --begin;
  while (end < units.size() && units[end].rows == units[index].rows) ++end;
  return std::span(partials).subspan(begin, end - begin);
}

// Normalises `merged` and writes the unit's rows to their places in `answer`.
void FinishRows(const AttentionRequest& request, const ItemShape& shape, const Unit& unit,
                const AttentionPartial& merged, std::span<float> answer) {
  const uint32_t value_dim = request.model->layout().value_dim;
  Scratch out(size_t{unit.num_rows} * value_dim);
  Scratch lse(unit.num_rows);
  CodecOf(request, unit).Finish(merged, out.data(), lse.data());
  for (uint32_t row = 0; row < unit.num_rows; ++row) {
    const size_t to = RowIndex(request, shape, unit.head, unit.row_begin + row);
    std::copy_n(out.data() + size_t{row} * value_dim, value_dim,
                answer.data() + shape.out_offset + to * value_dim);
    answer[shape.lse_offset + to] = lse[row];
  }
}

float CapLogit(float score, const AttentionOptions& options) {
  const float logit = score * options.softmax_scale;
  if (options.logit_softcap <= 0.0f) return logit;
  return options.logit_softcap * std::tanh(logit / options.logit_softcap);
}

// The logits of all runs on the card, at their places in `results`.
absl::Status ScoreOnGpu(const AttentionRequest& request, const AttentionTargets& targets,
                        const std::vector<ItemShape>& shapes, Gpu* gpu,
                        std::vector<ScoreResult>& results) {
  std::vector<GpuScores> jobs;
  for (size_t i = 0; i < targets.size(); ++i) {
    for (const GpuRun& run : targets[i]->gpu_runs) {
      jobs.push_back({.query = QueryOf(request, shapes[i], i, run),
                      .scores = results[i].logits.data() + run.first_token - results[i].token_begin,
                      .stride = results[i].num_tokens});
    }
  }
  SKETCHKV_RETURN_IF_ERROR(gpu->Score(jobs, request.patience));
  for (size_t i = 0; i < targets.size(); ++i) {
    for (const GpuRun& run : targets[i]->gpu_runs) {
      for (size_t row = 0; row < shapes[i].rows; ++row) {
        float* const logits = results[i].logits.data() + row * results[i].num_tokens +
                              (run.first_token - results[i].token_begin);
        for (uint32_t t = 0; t < run.token_end - run.token_begin; ++t) {
          logits[t] = CapLogit(logits[t], request.items[i].options);
        }
      }
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status ComputeAttention(const AttentionRequest& request, const AttentionTargets& targets,
                              Executor* executor, Gpu* gpu, std::span<float> answer) {
  const Model& model = *request.model;
  const uint32_t value_dim = model.layout().value_dim;
  const std::vector<ItemShape> shapes = ShapeItems(request);
  uint64_t bytes = 0;
  for (size_t i = 0; i < request.items.size(); ++i) {
    const AttentionItem& item = request.items[i];
    // Partials, and an answer of at most the same size.
    const uint64_t partial = uint64_t{shapes[i].rows_per_head} * (value_dim + 2) * sizeof(float);
    bytes += NumSplits(item, *targets[i]) * 2 * partial + UnitBytes(item, shapes[i], *targets[i]);
  }
  GpuPartials on_gpu(request, targets, shapes);
  SKETCHKV_RETURN_IF_ERROR(Admit(request, bytes + on_gpu.size_bytes()));
  const std::function<absl::Status()> compute_on_gpu = [&] {
    return on_gpu.Compute(gpu, answer, Place::kHost);
  };
  const std::vector<Unit> units = SplitWork(request, shapes, targets);
  std::vector<SharedQueries> shared = ShareQueries(units);
  std::vector<AttentionPartial> partials(units.size());
  const auto run_unit = [&](size_t i) {
    const Unit& unit = units[i];
    const AttentionItem& item = request.items[unit.item];
    const CellCodec& codec = CodecOf(request, unit);
    partials[i] = codec.NewPartial(unit.num_rows);
    const std::vector<CellTokens> cells = CellsOf(model, item, *targets[unit.item], unit);
    const bool last =
        shared[unit.rows].With([&] { return PrepareUnit(request, shapes[unit.item], unit); },
                               [&](const PreparedQueries& queries) {
                                 codec.Attend(cells, queries, item.options, &partials[i]);
                               });
    if (!last) return;
    // All tokens of these rows are done. A second loop over the rows would wake threads for less
    // work than that takes.
    const std::span<AttentionPartial> same = PartialsOfRows(units, i, partials);
    for (size_t p = 1; p < same.size(); ++p) MergePartial(same[p], &same[0]);
    FinishRows(request, shapes[unit.item], unit, same[0], answer);
    // Here rather than at the end: malloc is cheapest to the thread that asked for the memory.
    for (AttentionPartial& partial : same) partial = {};
  };
  SKETCHKV_RETURN_IF_ERROR(RunUnits(request, units.size(), executor,
                                    on_gpu.empty() ? nullptr : compute_on_gpu, run_unit));
  on_gpu.Merge(answer);
  return absl::OkStatus();
}

absl::StatusOr<std::vector<ScoreResult>> ComputeScores(const AttentionRequest& request,
                                                       const AttentionTargets& targets,
                                                       Executor* executor, Gpu* gpu) {
  const Model& model = *request.model;
  const std::vector<ItemShape> shapes = ShapeItems(request);
  uint64_t logits = 0, units_bytes = 0;
  for (size_t i = 0; i < request.items.size(); ++i) {
    logits += uint64_t{request.items[i].num_query_tokens} * shapes[i].query_heads *
              (targets[i]->token_end - targets[i]->token_begin);
    units_bytes += UnitBytes(request.items[i], shapes[i], *targets[i]);
  }
  // The logits, the scratch of the threads, and the messages made of them.
  SKETCHKV_RETURN_IF_ERROR(Admit(request, 3 * logits * sizeof(float) + units_bytes));
  std::vector<ScoreResult> results(request.items.size());
  for (size_t i = 0; i < results.size(); ++i) {
    const size_t rows = size_t{request.items[i].num_query_tokens} * shapes[i].query_heads;
    results[i].token_begin = targets[i]->token_begin;
    results[i].num_tokens = targets[i]->token_end - targets[i]->token_begin;
    results[i].logits.resize(rows * results[i].num_tokens);
  }
  const std::vector<Unit> units = SplitWork(request, shapes, targets);
  std::vector<SharedQueries> shared = ShareQueries(units);
  const std::function<absl::Status()> on_gpu = [&] {
    return ScoreOnGpu(request, targets, shapes, gpu, results);
  };
  const bool any_on_gpu = std::any_of(targets.begin(), targets.end(),
                                      [](const auto& target) { return !target->gpu_runs.empty(); });
  const auto run_unit = [&](size_t i) {
    const Unit& unit = units[i];
    const AttentionItem& item = request.items[unit.item];
    const ItemShape& shape = shapes[unit.item];
    ScoreResult& result = results[unit.item];
    const CellCodec& codec = CodecOf(request, unit);
    const std::vector<CellTokens> cells = CellsOf(model, item, *targets[unit.item], unit);
    const uint32_t count = unit.token_end - unit.token_begin;
    std::vector<float> scores(size_t{unit.num_rows} * count);
    shared[unit.rows].With(
        [&] { return PrepareUnit(request, shape, unit); },
        [&](const PreparedQueries& queries) { codec.Score(cells, queries, scores.data(), count); });
    for (uint32_t row = 0; row < unit.num_rows; ++row) {
      const size_t index = RowIndex(request, shape, unit.head, unit.row_begin + row);
      float* logits = result.logits.data() + index * result.num_tokens +
                      (unit.token_begin - result.token_begin);
      for (uint32_t t = 0; t < count; ++t) {
        logits[t] = CapLogit(scores[size_t{row} * count + t], item.options);
      }
    }
  };
  SKETCHKV_RETURN_IF_ERROR(
      RunUnits(request, units.size(), executor, any_on_gpu ? on_gpu : nullptr, run_unit));
  return results;
}

}  // namespace sketchkv
