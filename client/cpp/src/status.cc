#include "client/cpp/src/status.h"

#include <string>

#include "absl/strings/numbers.h"

namespace sketchkv::client {
namespace {

absl::Status FromCode(int code, const std::string& message) {
  if (code == 0) return absl::OkStatus();
  if (code < 0 || code > static_cast<int>(absl::StatusCode::kUnauthenticated)) {
    return absl::UnknownError(message);
  }
  return absl::Status(static_cast<absl::StatusCode>(code), message);
}

}  // namespace

absl::Status FromGrpc(const grpc::Status& status) {
  return FromCode(status.error_code(), status.error_message());
}

Outcome FromItem(const v1::ItemStatus& status) {
  return {FromCode(status.code(), status.message()), status.retry_after_ms()};
}

Outcome FromCall(const grpc::Status& status, const grpc::ClientContext& context) {
  Outcome outcome{FromGrpc(status), 0};
  if (status.ok()) return outcome;
  const auto& trailers = context.GetServerTrailingMetadata();
  const auto hint = trailers.find("grpc-retry-pushback-ms");
  if (hint != trailers.end()) {
    uint32_t pause_ms = 0;
    const absl::string_view text(hint->second.data(), hint->second.size());
    if (absl::SimpleAtoi(text, &pause_ms)) outcome.retry_after_ms = pause_ms;
  }
  return outcome;
}

bool IsRetryable(const Outcome& outcome) {
  switch (outcome.status.code()) {
    case absl::StatusCode::kUnavailable:
    case absl::StatusCode::kAborted:
      return true;
    case absl::StatusCode::kResourceExhausted:
      return outcome.retry_after_ms > 0;
    default:
      return false;
  }
}

bool IsOfServer(const Outcome& outcome) {
  return outcome.retry_after_ms > 0 || absl::IsInvalidArgument(outcome.status) ||
         absl::IsNotFound(outcome.status);
}

}  // namespace sketchkv::client
