#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "client/cpp/src/core.h"
#include "client/cpp/src/model_cache.h"
#include "client/cpp/src/segment_source.h"
#include "sketchkv/types.h"
#include "sketchkv/v1/attention.pb.h"

namespace sketchkv::client {

// An AttentionCall checked against its model, ready to send, and the sizes of its answer.
struct PreparedAttention {
  v1::AttentionRequest request;    // without request_id, timeout_ms and queries on the host
  std::span<const float> queries;  // the caller's; empty: they lie on a GPU
  bool outputs_on_gpu = false;     // the caller's memory there takes them
  std::vector<uint64_t> rows;      // of each item: query tokens * query heads
  uint32_t value_dim = 0;
};

// INVALID_ARGUMENT naming the field and both numbers; otherwise errors of GetModel.
[[nodiscard]] absl::StatusOr<PreparedAttention> PrepareAttention(ModelCache* models,
                                                                 const AttentionCall& call,
                                                                 TimePoint deadline);

// Client::Attend and Client::Score with their deadline given.
[[nodiscard]] absl::StatusOr<std::vector<AttentionOutput>> AttendOnce(ClientCore* core,
                                                                      ModelCache* models,
                                                                      SegmentSource* segments,
                                                                      const AttentionCall& call,
                                                                      TimePoint deadline);
[[nodiscard]] absl::StatusOr<std::vector<ScoreOutput>> ScoreOnce(ClientCore* core,
                                                                 ModelCache* models,
                                                                 const AttentionCall& call,
                                                                 TimePoint deadline);

}  // namespace sketchkv::client
