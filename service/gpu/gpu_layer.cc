#include "service/gpu/gpu_layer.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"

namespace sketchkv::gpu {
namespace {

constexpr uint32_t kStepTokens = 64;
// Thread blocks of the tuned kernel of scores that a multiprocessor has work for.
constexpr uint32_t kScoreBlocks = 3;
constexpr size_t kTunedAlignment = 16;  // of rows

std::vector<const HeadTable*> TablesOf(const Model& model, uint32_t layer) {
  std::vector<const HeadTable*> tables;
  if (!model.codec->profiles()[layer].uses_tables()) return tables;
  for (uint32_t head = 0; head < model.layout().num_kv_heads; ++head) {
    tables.push_back(&model.codec->tables()->at(layer, head));
  }
  return tables;
}

}  // namespace

absl::StatusOr<std::unique_ptr<GpuLayer>> GpuLayer::Create(const Model& model, uint32_t layer) {
  const CodecProfile& profile = model.codec->profiles()[layer];
  std::unique_ptr<GpuLayer> made(new GpuLayer);
  made->tuned_ = cuda::MakeCodecPlan(model.layout(), profile);
  made->cell_offset_ = model.codec->cell_offset(layer, 0);
  made->cell_stride_ = model.codec->cell_bytes(layer);

  const cuda::GeneralLayer general(model.layout(), profile, TablesOf(model, layer));
  SKETCHKV_ASSIGN_OR_RETURN(made->constants_, DeviceBuffer::Create(general.constant_bytes()));
  const std::vector<std::byte> constants = general.Constants(made->constants_.data());
  SKETCHKV_RETURN_IF_CUDA_ERROR(cudaMemcpy(made->constants_.data(), constants.data(),
                                           constants.size(), cudaMemcpyHostToDevice));
  made->general_ = general.Plan(made->constants_.data());
  if (made->tuned_) {
    made->max_pairs_ = Lane::kMaxPairs;
    return made;
  }
  const cuda::GeneralPlan& plan = made->general_;
  constexpr size_t kQueries = cuda::kMaxQueries;
  const size_t shares = Lane::kPartialFloats / (kQueries * plan.partial_floats);
  made->max_shares_ = static_cast<uint32_t>(shares / 2);
  made->max_pairs_ = static_cast<uint32_t>(
      std::min({shares / 2, Lane::kPreparedFloats / (kQueries * plan.query_floats),
                Lane::kTurnedFloats / (kQueries * plan.value_rows)}));
  return made;
}

absl::StatusOr<cuda::ChainArgs> GpuLayer::ChainOf(const Queries& queries,
                                                  const cuda::ThreadBlocks& most) const {
  cuda::ChainArgs chain{};
  SKETCHKV_RETURN_IF_ERROR(cuda::Schedule(queries.ranges, queries.head_count, most, &chain));
  chain.slots = queries.slots;
  chain.cell_offset = cell_offset_ + queries.head_begin * cell_stride_;
  chain.cell_stride = cell_stride_;
  return chain;
}

cuda::ThreadBlocks GpuLayer::GeneralBlocks(const Lane& lane) const {
  return {std::min(max_shares_, cuda::kGeneralWorkers * lane.multiprocessors())};
}

cuda::GeneralPlan GpuLayer::GeneralFrom(uint32_t head_begin) const {
  cuda::GeneralPlan plan = general_;
  if (plan.num_heads > 1) {
    plan.heads += head_begin;
    plan.num_heads -= head_begin;
  }
  return plan;
}

absl::Status GpuLayer::Attend(Lane* lane, const Queries& queries, const AttentionOptions& options,
                              float* out, float* lse) const {
  SKETCHKV_ASSIGN_OR_RETURN(
      const cuda::ChainArgs chain,
      ChainOf(queries, tuned_ ? lane->attend_blocks() : GeneralBlocks(*lane)));
  if (tuned_) {
    const cuda::AttendArgs args = {
        .chain = chain,
        .queries = queries.queries,
        .num_queries = queries.num_queries,
        .softmax_scale = options.softmax_scale,
        .logit_softcap = options.logit_softcap,
        .partials = lane->partials(),
        .arrivals = lane->arrivals(),
        .out = out,
        .lse = lse,
        .begins_early = true,
    };
    return CudaStatus(cuda::LaunchAttend(tuned_->cell, args, lane->stream()), "attention");
  }
  const cuda::GeneralAttendArgs args = {
      .query = {.chain = chain,
                .queries = queries.queries,
                .num_queries = queries.num_queries,
                .prepared = lane->prepared()},
      .softmax_scale = options.softmax_scale,
      .logit_softcap = options.logit_softcap,
      .partials = lane->partials(),
      .turned = general_.values == cuda::GeneralValues::kRotated ? lane->turned() : nullptr,
      .out = out,
      .lse = lse,
  };
  return CudaStatus(
      cuda::LaunchGeneralAttend(GeneralFrom(queries.head_begin), args, lane->stream()),
      "attention");
}

uint32_t GpuLayer::ScoreOffset(uint32_t token_begin) const {
  return tuned_ ? token_begin % kStepTokens : 0;
}

absl::Status GpuLayer::Score(Lane* lane, const Queries& queries, float* scores,
                             size_t stride) const {
  SKETCHKV_ASSIGN_OR_RETURN(
      const cuda::ChainArgs chain,
      ChainOf(queries, tuned_ ? cuda::ThreadBlocks{kScoreBlocks * lane->multiprocessors()}
                              : GeneralBlocks(*lane)));
  if (tuned_) {
    const cuda::ScoreArgs args = {.chain = chain,
                                  .queries = queries.queries,
                                  .num_queries = queries.num_queries,
                                  .scores = scores,
                                  .stride = stride};
    return CudaStatus(cuda::LaunchScore(tuned_->cell, args, lane->stream()), "scores");
  }
  const cuda::GeneralScoreArgs args = {.query = {.chain = chain,
                                                 .queries = queries.queries,
                                                 .num_queries = queries.num_queries,
                                                 .prepared = lane->prepared()},
                                       .scores = scores,
                                       .stride = stride};
  return CudaStatus(cuda::LaunchGeneralScore(GeneralFrom(queries.head_begin), args, lane->stream()),
                    "scores");
}

// Others than these rows are encoded to the same bytes by the general path.
bool GpuLayer::TunedTakes(const Cells& cells) const {
  const bool type = cells.key_type == DType::kBf16 || cells.key_type == DType::kFp16 ||
                    cells.key_type == DType::kFp32;
  return tuned_ && type && cells.key_type == cells.value_type && cells.aligned &&
         cells.key_stride % kTunedAlignment == 0 && cells.value_stride % kTunedAlignment == 0;
}

void GpuLayer::FillCells(Lane* lane, const Cells& cells, size_t first,
                         std::span<const cuda::GeneralCell> from) const {
  if (!TunedTakes(cells)) {
    std::memcpy(lane->host(cells.offset + first * sizeof(cuda::GeneralCell)), from.data(),
                from.size_bytes());
    return;
  }
  auto* const rows = reinterpret_cast<cuda::CellRows*>(lane->host(cells.offset)) + first;
  for (size_t i = 0; i < from.size(); ++i) rows[i] = from[i].rows;
}

absl::Status GpuLayer::Encode(Lane* lane, const Cells& cells,
                              cuda::EncodeArgs::Checks* checks) const {
  if (TunedTakes(cells)) {
    const cuda::EncodeArgs args = {
        .cells = reinterpret_cast<const cuda::CellRows*>(lane->device(cells.offset)),
        .num_cells = cells.num_cells,
        .type = static_cast<cuda::RowType>(cells.key_type),
        .key_stride = cells.key_stride,
        .value_stride = cells.value_stride,
        .checks = checks};
    return CudaStatus(cuda::LaunchEncode(*tuned_, args, lane->stream()), "encoding");
  }
  const cuda::GeneralEncodeArgs args = {
      .cells = reinterpret_cast<const cuda::GeneralCell*>(lane->device(cells.offset)),
      .num_cells = cells.num_cells,
      .key_stride = cells.key_stride,
      .value_stride = cells.value_stride,
      .checks = checks};
  return CudaStatus(cuda::LaunchGeneralEncode(general_, args, lane->stream()), "encoding");
}

absl::Status GpuLayer::Decode(Lane* lane, const Cells& cells) const {
  if (TunedTakes(cells)) {
    const cuda::DecodeArgs args = {
        .cells = reinterpret_cast<const cuda::CellRows*>(lane->device(cells.offset)),
        .num_cells = cells.num_cells,
        .type = static_cast<cuda::RowType>(cells.key_type),
        .key_stride = cells.key_stride,
        .value_stride = cells.value_stride};
    return CudaStatus(cuda::LaunchDecode(*tuned_, args, lane->stream()), "decoding");
  }
  const cuda::GeneralDecodeArgs args = {
      .cells = reinterpret_cast<const cuda::GeneralCell*>(lane->device(cells.offset)),
      .num_cells = cells.num_cells,
      .key_type = static_cast<uint32_t>(cells.key_type),
      .value_type = static_cast<uint32_t>(cells.value_type),
      .key_stride = cells.key_stride,
      .value_stride = cells.value_stride};
  return CudaStatus(cuda::LaunchGeneralDecode(general_, args, lane->stream()), "decoding");
}

}  // namespace sketchkv::gpu
