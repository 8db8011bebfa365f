#pragma once

#include "absl/status/status.h"
#include "service/engine/gpu.h"
#include "service/gpu/block_tables.h"
#include "service/gpu/gpu_model.h"
#include "service/gpu/lane.h"

namespace sketchkv::gpu {

// Scores of one job on one lane, as many tokens at a time as the lane's staging area has room for.
[[nodiscard]] absl::Status ComputeScoresOn(Lane* lane, size_t lane_index, BlockTables* tables,
                                           const GpuModel& model, const GpuScores& job);

}  // namespace sketchkv::gpu
