#include "service/gpu/scores.h"

#include <algorithm>
#include <cstring>

#include "kernels/base/status_macros.h"

namespace sketchkv::gpu {
namespace {

constexpr uint32_t kStepTokens = 64;  // a launch writes whole steps
// Of the staging area, for 8 queries of 256 kv heads of 576 channels; scores have the rest.
constexpr size_t kQueryBytes = size_t{5} << 20;

// Some rows of each kv head, and some tokens.
struct Tile {
  uint32_t row_begin, row_end;
  uint32_t token_begin, token_end;
};

class ScoreJob {
 public:
  ScoreJob(Lane* lane, size_t lane_index, BlockTables* tables, const GpuModel& model,
           const GpuScores& job)
      : lane_(lane),
        first_block_(BlockTables::OfLane(lane_index)),
        tables_(tables),
        model_(model),
        job_(job),
        query_(job.query) {}

  absl::Status Run() {
    const auto& slots = query_.blocks->slots;
    std::memcpy(lane_->host_tables(), slots.data(), slots.size_bytes());
    SKETCHKV_RETURN_IF_CUDA_ERROR(cudaMemcpyAsync(tables_->device(first_block_),
                                                  lane_->host_tables(), slots.size_bytes(),
                                                  cudaMemcpyHostToDevice, lane_->stream()));
    const uint32_t rows = query_.num_query_tokens * query_.queries_per_kv_head;
    for (uint32_t row = 0; row < rows; row += cuda::kMaxQueries) {
      const uint32_t row_end = std::min(rows, row + cuda::kMaxQueries);
      SKETCHKV_RETURN_IF_ERROR(CopyQueriesUp(row, row_end));
      const size_t fit = (Lane::kStagingBytes - kQueryBytes) / sizeof(float) /
                         (size_t{query_.head_count} * (row_end - row));
      const auto most = static_cast<uint32_t>(
          std::min<size_t>(fit / kStepTokens * kStepTokens, uint32_t{1} << 30));
      for (uint32_t token = query_.token_begin; token < query_.token_end;) {
        const uint32_t end = std::min<uint64_t>(query_.token_end,
                                                uint64_t{token / kStepTokens} * kStepTokens + most);
        SKETCHKV_RETURN_IF_ERROR(ComputeTile({row, row_end, token, end}));
        token = end;
      }
    }
    return absl::OkStatus();
  }

 private:
  // Calls visit(row of the request's order, row of the launch).
  template <typename Visit>
  void EachRow(uint32_t row_begin, uint32_t row_end, const Visit& visit) {
    const uint32_t group = query_.queries_per_kv_head;
    size_t to = 0;
    for (uint32_t head = 0; head < query_.head_count; ++head) {
      for (uint32_t row = row_begin; row < row_end; ++row) {
        visit(size_t{row / group} * query_.head_count * group + head * group + row % group, to++);
      }
    }
  }

  absl::Status CopyQueriesUp(uint32_t row_begin, uint32_t row_end) {
    const size_t dim = query_.model->layout().head_dim, row_bytes = dim * sizeof(float);
    EachRow(row_begin, row_end, [&](size_t from, size_t to) {
      std::memcpy(lane_->host(to * row_bytes), query_.queries + from * dim, row_bytes);
    });
    return lane_->Up(0, size_t{row_end - row_begin} * query_.head_count * row_bytes);
  }

  absl::Status ComputeTile(const Tile& tile) {
    const GpuLayer& layer = model_.layer(query_.layer);
    const uint32_t offset = layer.ScoreOffset(tile.token_begin);
    const uint32_t count = tile.token_end - tile.token_begin;
    const size_t stride = (offset + count + kStepTokens - 1) / kStepTokens * kStepTokens;
    const cuda::TokenRange range{first_block_, tile.token_begin, tile.token_end};
    const GpuLayer::Queries queries = {.slots = tables_->base(),
                                       .ranges = {&range, 1},
                                       .head_begin = query_.head_begin,
                                       .head_count = query_.head_count,
                                       .queries = reinterpret_cast<const float*>(lane_->device(0)),
                                       .num_queries = tile.row_end - tile.row_begin};
    SKETCHKV_RETURN_IF_ERROR(
        layer.Score(lane_, queries, reinterpret_cast<float*>(lane_->device(kQueryBytes)), stride));
    const size_t rows = size_t{query_.head_count} * queries.num_queries;
    SKETCHKV_RETURN_IF_ERROR(lane_->Down(kQueryBytes, kQueryBytes + rows * stride * sizeof(float)));
    SKETCHKV_RETURN_IF_ERROR(lane_->Wait());
    const auto* const scores = reinterpret_cast<const float*>(lane_->host(kQueryBytes));
    EachRow(tile.row_begin, tile.row_end, [&](size_t to, size_t from) {
      std::copy_n(scores + from * stride + offset, count,
                  job_.scores + to * job_.stride + (tile.token_begin - query_.token_begin));
    });
    return absl::OkStatus();
  }

  Lane* const lane_;
  const uint32_t first_block_;
  BlockTables* const tables_;
  const GpuModel& model_;
  const GpuScores& job_;
  const GpuQuery& query_;
};

}  // namespace

absl::Status ComputeScoresOn(Lane* lane, size_t lane_index, BlockTables* tables,
                             const GpuModel& model, const GpuScores& job) {
  return ScoreJob(lane, lane_index, tables, model, job).Run();
}

}  // namespace sketchkv::gpu
