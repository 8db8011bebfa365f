#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "kernels/cuda/plan.h"
#include "service/engine/gpu.h"
#include "service/gpu/block_tables.h"
#include "service/gpu/gpu_model.h"
#include "service/gpu/lane.h"

namespace sketchkv::gpu {

// Some rows of a query, as many as one launch takes.
struct Piece {
  const GpuAttention* job = nullptr;
  std::shared_ptr<const GpuModel> model;
  Place place = Place::kHost;
  uint32_t row_begin = 0;  // of a kv head, counted as [num_query_tokens][queries_per_kv_head]
  uint32_t row_end = 0;
  absl::Status* refused = nullptr;  // set where a query on the card is not finite

  [[nodiscard]] uint32_t num_rows() const { return row_end - row_begin; }
  [[nodiscard]] uint32_t num_pairs() const { return job->query.head_count; }
};

// Pieces that are answered together on one lane: what has the layer, heads and options in common in
// one launch.
class AttentionBatch {
 public:
  // All outlive it.
  AttentionBatch(Lane* lane, size_t lane_index, BlockTables* tables)
      : lane_(lane), lane_index_(lane_index), tables_(tables) {}
  ~AttentionBatch();  // tables that were not filled are given back
  AttentionBatch(const AttentionBatch&) = delete;
  AttentionBatch& operator=(const AttentionBatch&) = delete;

  // False: it does not fit any more. An empty batch takes every piece.
  [[nodiscard]] bool Add(const Piece& piece);
  // Computes all and waits for it.
  [[nodiscard]] absl::Status Run();

 private:
  struct Sequence {
    Piece piece;
    cuda::TokenRange range;
  };
  struct Launch {
    std::vector<Sequence> sequences;
    // In the lane's staging area, once laid out.
    size_t queries = 0;
    size_t not_finite = 0;  // on the host: a flag a sequence
    size_t out = 0;
    size_t lse = 0;

    [[nodiscard]] bool Takes(const Piece& piece) const;
    [[nodiscard]] const GpuQuery& query() const { return sequences.front().piece.job->query; }
    // Pieces whose answers are wanted on the card. With none, kernels write to the host's memory.
    [[nodiscard]] size_t num_on_card() const;
    // The one job whose answer kernels may write to where it is wanted on the card; else null.
    [[nodiscard]] const GpuAttention* in_place() const;
    [[nodiscard]] const KvLayout& layout() const { return query().model->layout(); }
    [[nodiscard]] size_t rows() const;  // of all sequences and kv heads
  };

  [[nodiscard]] uint32_t PlaceTable(const GpuBlocks& blocks);
  void LayOut();
  absl::Status CopyTablesUp();
  absl::Status GatherQueries();
  // Queries on the host to the lane's pinned memory, in the order of a launch.
  const float* StageQueries(const Piece& piece, size_t at);
  absl::Status Start(const Launch& launch);
  absl::Status CopyAnswersOnCard(const Launch& launch);
  void GiveAnswers(const Launch& launch);
  absl::Status CheckQueries(const Launch& launch);

  Lane* const lane_;
  const size_t lane_index_;
  BlockTables* const tables_;

  std::vector<Launch> launches_;
  size_t staging_bytes_ = 0;
  uint32_t table_blocks_ = 0;  // of the lane's own part
  struct Table {
    const GpuBlocks* blocks;
    uint32_t first_block;
    std::optional<BlockTables::Place> kept;
  };
  std::vector<Table> placed_;
  bool done_ = false;
};

}  // namespace sketchkv::gpu
