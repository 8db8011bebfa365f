#pragma once

#include <grpcpp/server_context.h>
#include <grpcpp/support/status.h>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "sketchkv/v1/types.pb.h"

namespace sketchkv {

// RESOURCE_EXHAUSTED for what will never fit this server, however often it is tried.
[[nodiscard]] absl::Status NeverFitsError(absl::string_view message);

// When a refused request may be sent again, in milliseconds; 0 where trying again does not help.
[[nodiscard]] uint32_t RetryAfterMs(const absl::Status& status);

// The same as gRPC's trailer grpc-retry-pushback-ms of `call`, before it is finished with `status`.
void AddRetryHint(const absl::Status& status, grpc::CallbackServerContext* call);

// The codes of both are equal numbers.
[[nodiscard]] grpc::Status ToGrpcStatus(const absl::Status& status);
[[nodiscard]] v1::ItemStatus ToItemStatus(const absl::Status& status);

}  // namespace sketchkv
