#include "service/gpu/attention_batch.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"

namespace sketchkv::gpu {
namespace {

constexpr size_t kAlignment = 256;
constexpr size_t kAnswerAlignment = 16;  // of what kernels write four numbers at a time

size_t Align(size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

uint32_t QueryHeads(const GpuQuery& query) { return query.head_count * query.queries_per_kv_head; }

// Calls visit(row of the request's order, row of the launch) for each row of a piece.
template <typename Visit>
void EachRow(const Piece& piece, const Visit& visit) {
  const GpuQuery& query = piece.job->query;
  const uint32_t group = query.queries_per_kv_head;
  size_t to = 0;
  for (uint32_t head = 0; head < query.head_count; ++head) {
    for (uint32_t row = piece.row_begin; row < piece.row_end; ++row) {
      visit(size_t{row / group} * QueryHeads(query) + head * group + row % group, to++);
    }
  }
}

// Calls visit(first row of the request's order, first row of the launch, rows) for each run of
// rows that repeats for every kv head: from head to head they are queries_per_kv_head, and
// num_rows(), apart.
template <typename Visit>
absl::Status EachRun(const Piece& piece, const Visit& visit) {
  const GpuQuery& query = piece.job->query;
  const uint32_t group = query.queries_per_kv_head;
  for (uint32_t row = piece.row_begin; row < piece.row_end;) {
    const uint32_t end = std::min(piece.row_end, (row / group + 1) * group);
    SKETCHKV_RETURN_IF_ERROR(visit(size_t{row / group} * QueryHeads(query) + row % group,
                                   size_t{row - piece.row_begin}, size_t{end - row}));
    row = end;
  }
  return absl::OkStatus();
}

}  // namespace

AttentionBatch::~AttentionBatch() {
  for (const Table& table : placed_) {
    if (table.kept) tables_->Release(*table.kept, done_);
  }
}

bool AttentionBatch::Launch::Takes(const Piece& piece) const {
  const Piece& first = sequences.front().piece;
  const GpuQuery& a = first.job->query;
  const GpuQuery& b = piece.job->query;
  return first.model == piece.model && a.layer == b.layer && a.head_begin == b.head_begin &&
         a.head_count == b.head_count && first.num_rows() == piece.num_rows() &&
         first.job->options.softmax_scale == piece.job->options.softmax_scale &&
         first.job->options.logit_softcap == piece.job->options.logit_softcap &&
         sequences.size() < cuda::kMaxSequences &&
         (sequences.size() + 1) * piece.num_pairs() <= piece.model->layer(b.layer).max_pairs();
}

size_t AttentionBatch::Launch::rows() const {
  return sequences.size() * query().head_count * sequences.front().piece.num_rows();
}

size_t AttentionBatch::Launch::num_on_card() const {
  return std::count_if(sequences.begin(), sequences.end(), [](const Sequence& sequence) {
    return sequence.piece.place == Place::kGpu;
  });
}

const GpuAttention* AttentionBatch::Launch::in_place() const {
  const Piece& piece = sequences.front().piece;
  const GpuQuery& query = piece.job->query;
  const bool same_order =
      query.num_query_tokens == 1 && piece.num_rows() == query.queries_per_kv_head;
  const bool aligned = reinterpret_cast<uintptr_t>(piece.job->out) % kAnswerAlignment == 0;
  return sequences.size() == 1 && num_on_card() == 1 && same_order && aligned ? piece.job : nullptr;
}

bool AttentionBatch::Add(const Piece& piece) {
  const KvLayout& layout = piece.job->query.model->layout();
  const size_t rows = size_t{piece.num_rows()} * piece.num_pairs();
  const size_t bytes =
      rows * (layout.head_dim + layout.value_dim + 1) * sizeof(float) + 4 * kAlignment;
  const GpuBlocks& blocks = *piece.job->query.blocks;
  if (!launches_.empty() && (staging_bytes_ + bytes > Lane::kStagingBytes ||
                             table_blocks_ + blocks.slots.size() > Lane::kTableBlocks)) {
    return false;
  }
  staging_bytes_ += bytes;
  const GpuQuery& query = piece.job->query;
  const Sequence sequence{piece, {PlaceTable(blocks), query.token_begin, query.token_end}};
  for (Launch& launch : launches_) {
    if (!launch.Takes(piece)) continue;
    launch.sequences.push_back(sequence);
    return true;
  }
  launches_.emplace_back().sequences.push_back(sequence);
  return true;
}

uint32_t AttentionBatch::PlaceTable(const GpuBlocks& blocks) {
  for (const Table& table : placed_) {
    if (table.blocks == &blocks) return table.first_block;
  }
  Table table{&blocks, 0, tables_->Find(blocks)};
  if (table.kept) {
    table.first_block = table.kept->first_block;
  } else {
    table.first_block = BlockTables::OfLane(lane_index_) + table_blocks_;
    table_blocks_ += static_cast<uint32_t>(blocks.slots.size());
  }
  placed_.push_back(table);
  return table.first_block;
}

void AttentionBatch::LayOut() {
  size_t end = 0;
  const auto take = [&end](size_t bytes) {
    const size_t begin = end;
    end += Align(bytes);
    return begin;
  };
  for (Launch& launch : launches_) {
    launch.queries = take(launch.rows() * launch.layout().head_dim * sizeof(float));
    launch.not_finite = take(launch.sequences.size() * sizeof(uint32_t));
    std::memset(lane_->host(launch.not_finite), 0, launch.sequences.size() * sizeof(uint32_t));
    launch.out = take(launch.rows() * launch.layout().value_dim * sizeof(float));
    launch.lse = take(launch.rows() * sizeof(float));
  }
  staging_bytes_ = end;
}

absl::Status AttentionBatch::GatherQueries() {
  cuda::GatherArgs args;
  args.num_pieces = 0;
  const auto gather = [&] {
    return CudaStatus(cuda::LaunchGather(args, lane_->stream()), "gathering queries");
  };
  for (const Launch& launch : launches_) {
    size_t at = launch.queries, flag = launch.not_finite;
    for (const Sequence& sequence : launch.sequences) {
      const Piece& piece = sequence.piece;
      const uint32_t dim = launch.layout().head_dim;
      if (args.num_pieces == cuda::kMaxGatherPieces) {
        SKETCHKV_RETURN_IF_ERROR(gather());
        args.num_pieces = 0;
      }
      args.pieces[args.num_pieces++] = {
          .from = piece.place == Place::kGpu ? piece.job->query.queries : StageQueries(piece, at),
          .to = reinterpret_cast<float*>(lane_->device(at)),
          .not_finite = reinterpret_cast<uint32_t*>(lane_->host(flag)),
          .num_heads = piece.num_pairs(),
          .group =
              piece.place == Place::kGpu ? piece.job->query.queries_per_kv_head : piece.num_rows(),
          .row_begin = piece.place == Place::kGpu ? piece.row_begin : 0,
          .num_rows = piece.num_rows(),
          .dim = dim};
      at += size_t{piece.num_rows()} * piece.num_pairs() * dim * sizeof(float);
      flag += sizeof(uint32_t);
    }
  }
  return gather();
}

const float* AttentionBatch::StageQueries(const Piece& piece, size_t at) {
  const uint32_t dim = piece.job->query.model->layout().head_dim;
  auto* const staged = reinterpret_cast<float*>(lane_->host(at));
  EachRow(piece, [&](size_t from, size_t to) {
    std::copy_n(piece.job->query.queries + from * dim, dim, staged + to * dim);
  });
  return staged;
}

absl::Status AttentionBatch::CopyTablesUp() {
  uint32_t staged = 0;
  const auto copy = [&](uint32_t to, uint32_t from, size_t count) {
    return CudaStatus(
        cudaMemcpyAsync(tables_->device(to), lane_->host_tables() + from, count * sizeof(void*),
                        cudaMemcpyHostToDevice, lane_->stream()),
        "copying block tables");
  };
  // Tables of this batch stand together, in order.
  for (const Table& table : placed_) {
    if (table.kept) continue;
    const auto& slots = table.blocks->slots;
    std::memcpy(lane_->host_tables() + staged, slots.data(), slots.size_bytes());
    staged += static_cast<uint32_t>(slots.size());
  }
  if (staged > 0) SKETCHKV_RETURN_IF_ERROR(copy(BlockTables::OfLane(lane_index_), 0, staged));
  for (const Table& table : placed_) {
    if (!table.kept || !table.kept->fill) continue;
    const auto& slots = table.blocks->slots;
    if (staged + slots.size() > Lane::kTableBlocks) {  // the stream has read what is there
      SKETCHKV_RETURN_IF_ERROR(lane_->Wait());
      staged = 0;
    }
    std::memcpy(lane_->host_tables() + staged, slots.data(), slots.size_bytes());
    SKETCHKV_RETURN_IF_ERROR(copy(table.first_block, staged, slots.size()));
    staged += static_cast<uint32_t>(slots.size());
  }
  return absl::OkStatus();
}

absl::Status AttentionBatch::Start(const Launch& launch) {
  const Piece& first = launch.sequences.front().piece;
  const GpuQuery& query = launch.query();
  std::vector<cuda::TokenRange> ranges;
  for (const Sequence& sequence : launch.sequences) ranges.push_back(sequence.range);
  const GpuLayer::Queries queries = {
      .slots = tables_->base(),
      .ranges = ranges,
      .head_begin = query.head_begin,
      .head_count = query.head_count,
      .queries = reinterpret_cast<const float*>(lane_->device(launch.queries)),
      .num_queries = first.num_rows()};
  const auto answer = [&](size_t offset) {
    std::byte* const at = launch.num_on_card() == 0 ? lane_->host(offset) : lane_->device(offset);
    return reinterpret_cast<float*>(at);
  };
  const GpuAttention* const in_place = launch.in_place();
  return first.model->layer(query.layer)
      .Attend(lane_, queries, first.job->options, in_place ? in_place->out : answer(launch.out),
              in_place ? in_place->lse : answer(launch.lse));
}

absl::Status AttentionBatch::CopyAnswersOnCard(const Launch& launch) {
  if (launch.in_place() != nullptr) return absl::OkStatus();
  const size_t dim = launch.layout().value_dim, row_bytes = dim * sizeof(float);
  size_t row = 0;
  for (const Sequence& sequence : launch.sequences) {
    const Piece& piece = sequence.piece;
    const size_t rows = size_t{piece.num_rows()} * piece.num_pairs();
    if (piece.place == Place::kGpu) {
      const size_t group = piece.job->query.queries_per_kv_head;
      SKETCHKV_RETURN_IF_ERROR(EachRun(piece, [&](size_t to, size_t from, size_t run) {
        const auto copy = [&](float* into, size_t at, size_t bytes) {
          return CudaStatus(
              cudaMemcpy2DAsync(into, group * bytes, lane_->device(at + (row + from) * bytes),
                                piece.num_rows() * bytes, run * bytes, piece.num_pairs(),
                                cudaMemcpyDeviceToDevice, lane_->stream()),
              "copying outputs");
        };
        SKETCHKV_RETURN_IF_ERROR(copy(piece.job->out + to * dim, launch.out, row_bytes));
        return copy(piece.job->lse + to, launch.lse, sizeof(float));
      }));
    }
    row += rows;
  }
  return absl::OkStatus();
}

void AttentionBatch::GiveAnswers(const Launch& launch) {
  const size_t dim = launch.layout().value_dim;
  const auto* const out = reinterpret_cast<const float*>(lane_->host(launch.out));
  const auto* const lse = reinterpret_cast<const float*>(lane_->host(launch.lse));
  size_t row = 0;
  for (const Sequence& sequence : launch.sequences) {
    const Piece& piece = sequence.piece;
    if (piece.place == Place::kHost) {
      EachRow(piece, [&](size_t to, size_t from) {
        std::copy_n(out + (row + from) * dim, dim, piece.job->out + to * dim);
        piece.job->lse[to] = lse[row + from];
      });
    }
    row += size_t{piece.num_rows()} * piece.num_pairs();
  }
}

// Queries that lie on the host were looked at before.
absl::Status AttentionBatch::CheckQueries(const Launch& launch) {
  const uint32_t dim = launch.layout().head_dim;
  const auto* not_finite = reinterpret_cast<const uint32_t*>(lane_->host(launch.not_finite));
  size_t at = launch.queries;
  for (const Sequence& sequence : launch.sequences) {
    const Piece& piece = sequence.piece;
    const size_t floats = size_t{piece.num_rows()} * piece.num_pairs() * dim;
    const size_t end = at + floats * sizeof(float);
    if (*not_finite++ != 0 && piece.place == Place::kGpu) {
      SKETCHKV_RETURN_IF_ERROR(lane_->Down(at, end));
      SKETCHKV_RETURN_IF_ERROR(lane_->Wait());
      const auto* const queries = reinterpret_cast<const float*>(lane_->host(at));
      const float* const bad =
          std::find_if_not(queries, queries + floats, [](float x) { return std::isfinite(x); });
      *piece.refused = absl::InvalidArgumentError(
          absl::StrCat("queries has ", *bad, " at channel ", (bad - queries) % dim));
    }
    at = end;
  }
  return absl::OkStatus();
}

absl::Status AttentionBatch::Run() {
  LayOut();
  SKETCHKV_RETURN_IF_ERROR(CopyTablesUp());
  SKETCHKV_RETURN_IF_ERROR(GatherQueries());  // last: attention begins while it runs
  for (const Launch& launch : launches_) SKETCHKV_RETURN_IF_ERROR(Start(launch));
  for (const Launch& launch : launches_) SKETCHKV_RETURN_IF_ERROR(CopyAnswersOnCard(launch));
  for (const Launch& launch : launches_) {
    const size_t on_card = launch.num_on_card();
    if (on_card == 0 || on_card == launch.sequences.size()) continue;  // all are where they belong
    SKETCHKV_RETURN_IF_ERROR(lane_->Down(launch.out, launch.lse + launch.rows() * sizeof(float)));
  }
  SKETCHKV_RETURN_IF_ERROR(lane_->Wait());
  done_ = true;
  for (const Launch& launch : launches_) {
    SKETCHKV_RETURN_IF_ERROR(CheckQueries(launch));
    GiveAnswers(launch);
  }
  return absl::OkStatus();
}

}  // namespace sketchkv::gpu
