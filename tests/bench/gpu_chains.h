#pragma once

#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/cuda/plan.h"
#include "tests/bench/contender.h"
#include "tests/gpu/device_array.h"

namespace sketchkv::bench {

inline constexpr uint32_t kGpuHeads = 8;

// Sequences of equal length on the card, their blocks in shuffled slots. Encoded by the CPU from
// the run's numbers, repeated.
struct GpuChains {
  // Options profile, block (its tokens), sequences and tokens (of each).
  [[nodiscard]] static absl::StatusOr<std::unique_ptr<GpuChains>> Make(const Options& options);

  cuda::CellPlan plan;
  double key_bytes;   // of a block and kv head: codes and scales
  double cell_bytes;  // those and the values'
  size_t cell_offset, cell_stride;
  double num_cells;  // of all sequences
  std::vector<cuda::TokenRange> sequences;
  testing::DeviceArray<uint8_t> memory;
  testing::DeviceArray<const uint8_t*> slots;
};

// A launch over some of the sequences, with its queries and outputs; may be enqueued again and
// again.
class ChainLaunch {
 public:
  // `most`: thread blocks that the card runs at a time. `score_stride`: scores a query, 0 for
  // attention; halves or floats.
  ChainLaunch(const GpuChains& chains, std::span<const cuda::TokenRange> sequences,
              const std::vector<float>& queries, uint32_t num_queries,
              const cuda::ThreadBlocks& most, size_t score_stride, bool as_halves = false);

  // begins_early: as in cuda::AttendArgs.
  void Attend(cudaStream_t stream, bool begins_early) const;
  void Score(cudaStream_t stream) const;

 private:
  const cuda::CellPlan plan_;
  testing::DeviceArray<float> queries_, partials_;
  testing::DeviceArray<uint32_t> arrivals_;
  testing::DeviceArray<float> out_, lse_, scores_;
  cuda::AttendArgs attend_{};
  cuda::ScoreArgs score_{};
};

}  // namespace sketchkv::bench
