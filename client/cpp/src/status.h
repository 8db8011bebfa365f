#pragma once

#include <grpcpp/client_context.h>
#include <grpcpp/support/status.h>

#include <cstdint>

#include "absl/status/status.h"
#include "sketchkv/v1/types.pb.h"

namespace sketchkv::client {

// How a call or an item ended, and the pause the server asks for before the next try (0: none).
struct Outcome {
  absl::Status status;
  uint32_t retry_after_ms = 0;
};

// Codes have the same numbers; one outside the known set becomes UNKNOWN.
[[nodiscard]] absl::Status FromGrpc(const grpc::Status& status);
[[nodiscard]] Outcome FromItem(const v1::ItemStatus& status);
// With the hint of gRFC A6 (trailing metadata grpc-retry-pushback-ms), where there is one.
[[nodiscard]] Outcome FromCall(const grpc::Status& status, const grpc::ClientContext& context);

// UNAVAILABLE and ABORTED pass by themselves; RESOURCE_EXHAUSTED only where the server says when.
[[nodiscard]] bool IsRetryable(const Outcome& outcome);

// Whether a failed call's status is certainly the server's: gRPC makes these codes for no reason of
// its own, and no hint.
[[nodiscard]] bool IsOfServer(const Outcome& outcome);

}  // namespace sketchkv::client
