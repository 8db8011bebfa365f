#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/cuda/general/general.h"
#include "kernels/cuda/plan.h"
#include "service/engine/model_registry.h"
#include "service/gpu/buffer.h"
#include "service/gpu/lane.h"

namespace sketchkv::gpu {

// The kernels of one layer of a model: the tuned ones where they take it, else the general path.
// Immutable and thread-safe.
class GpuLayer {
 public:
  // Puts what the general path needs on the card. RESOURCE_EXHAUSTED: no memory left there.
  [[nodiscard]] static absl::StatusOr<std::unique_ptr<GpuLayer>> Create(const Model& model,
                                                                        uint32_t layer);

  [[nodiscard]] bool tuned() const { return tuned_.has_value(); }

  // Sequences of some heads. Device memory, but for `ranges`.
  struct Queries {
    const uint8_t* const* slots = nullptr;
    std::span<const cuda::TokenRange> ranges;  // at most cuda::kMaxSequences
    uint32_t head_begin = 0;
    uint32_t head_count = 0;
    const float* queries = nullptr;  // [ranges][head_count][num_queries][head_dim]
    uint32_t num_queries = 0;        // a kv head, at most cuda::kMaxQueries
  };
  // (sequence, kv head) pairs of one launch.
  [[nodiscard]] uint32_t max_pairs() const { return max_pairs_; }

  // out: [ranges][head_count][num_queries][value_dim]; lse: the same without value_dim. Slots and
  // cells were there when the launch before it in the lane's stream began.
  [[nodiscard]] absl::Status Attend(Lane* lane, const Queries& queries,
                                    const AttentionOptions& options, float* out, float* lse) const;
  // scores: [ranges][head_count][num_queries][stride]; the first token of a range stands at
  // ScoreOffset(its token_begin), and its last is followed by at most 63 others.
  [[nodiscard]] absl::Status Score(Lane* lane, const Queries& queries, float* scores,
                                   size_t stride) const;
  [[nodiscard]] uint32_t ScoreOffset(uint32_t token_begin) const;

  // Cells to encode or decode. Rows lie in rows of the types and strides given; all device memory,
  // but for `cells`, which the lane's staging area holds at `offset`: the kernels read it there.
  struct Cells {
    size_t offset = 0;
    uint32_t num_cells = 0;
    DType key_type = DType::kBf16;
    DType value_type = DType::kBf16;
    size_t key_stride = 0;
    size_t value_stride = 0;
    bool aligned = false;  // rows, to 16 bytes; else to their numbers

    // Whether one launch takes both.
    [[nodiscard]] bool SameRows(const Cells& other) const {
      return key_type == other.key_type && value_type == other.value_type &&
             key_stride == other.key_stride && value_stride == other.value_stride &&
             aligned == other.aligned;
    }
  };
  // Room for one cell there.
  static constexpr size_t kCellBytes = sizeof(cuda::GeneralCell);
  // Writes what the kernels read of some of them, from cell `first` on, to the host's side of the
  // staging area; to be copied up before the launch.
  void FillCells(Lane* lane, const Cells& cells, size_t first,
                 std::span<const cuda::GeneralCell> from) const;
  [[nodiscard]] absl::Status Encode(Lane* lane, const Cells& cells,
                                    cuda::EncodeArgs::Checks* checks) const;
  [[nodiscard]] absl::Status Decode(Lane* lane, const Cells& cells) const;

 private:
  GpuLayer() = default;
  [[nodiscard]] bool TunedTakes(const Cells& cells) const;
  [[nodiscard]] absl::StatusOr<cuda::ChainArgs> ChainOf(const Queries& queries,
                                                        const cuda::ThreadBlocks& most) const;
  [[nodiscard]] cuda::ThreadBlocks GeneralBlocks(const Lane& lane) const;
  [[nodiscard]] cuda::GeneralPlan GeneralFrom(uint32_t head_begin) const;

  std::optional<cuda::CodecPlan> tuned_;
  cuda::GeneralPlan general_;
  DeviceBuffer constants_;
  size_t cell_offset_ = 0;
  size_t cell_stride_ = 0;
  uint32_t max_pairs_ = 0;
  uint32_t max_shares_ = 0;  // of a launch of the general path
};

}  // namespace sketchkv::gpu
