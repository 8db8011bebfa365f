#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "service/engine/attention.h"
#include "service/rpc/inflight.h"
#include "service/rpc/segment_ref.h"
#include "service/rpc/service_context.h"
#include "sketchkv/v1/attention.pb.h"

namespace sketchkv {

// A request as the engine takes it, what its views point to besides the message, and where its
// answer goes.
struct AttentionCall {
  AttentionRequest request;
  std::vector<float> queries;           // where the message's bytes cannot be used in place
  uint64_t output_bytes = 0;            // of an Attend answer
  std::optional<SegmentBytes> outputs;  // the client's memory for it; neither: it travels
  std::optional<GpuBytes> gpu_outputs;
  std::optional<GpuBytes> gpu_queries;
  InflightBytes::Hold queries_hold, outputs_hold;  // of copies on the host
  InflightBytes::Hold hold;                        // of what the engine makes for it
};

// INVALID_ARGUMENT naming the field and both numbers; NOT_FOUND model; RESOURCE_EXHAUSTED for
// queries and outputs that are copied; CANCELLED when the client took those back. Both `message`
// and `service` outlive the call.
[[nodiscard]] absl::StatusOr<std::unique_ptr<AttentionCall>> ParseAttentionCall(
    const ServiceContext& service, const v1::AttentionRequest& message, TimePoint deadline,
    std::function<bool()> cancelled);

// Runs Attend and puts the answer into `payload`, or into the client's segment or its memory on the
// card and leaves `payload` empty. CANCELLED when the client took that back: nothing is written
// from then on, and what was is no answer. Empties `payload` after an error.
[[nodiscard]] absl::Status RunAttend(const ServiceContext& service, const AttentionCall& call,
                                     std::string* payload);

}  // namespace sketchkv
