#include "service/rpc/status.h"

#include <string>

#include "absl/strings/cord.h"

namespace sketchkv {
namespace {

constexpr char kNeverFits[] = "sketchkv.never_fits";

// Messages repeat what the peer sent, which may be megabytes; trailers hold 8 KiB.
std::string ShortMessage(const absl::Status& status) {
  constexpr size_t kMost = 1024;
  std::string message(status.message());
  if (message.size() <= kMost) return message;
  size_t end = kMost;
  while ((static_cast<unsigned char>(message[end]) & 0xC0) == 0x80)
    --end;  // whole UTF-8 characters
  message.resize(end);
  return message + "...";
}

}  // namespace

absl::Status NeverFitsError(absl::string_view message) {
  absl::Status status = absl::ResourceExhaustedError(message);
  status.SetPayload(kNeverFits, absl::Cord());
  return status;
}

uint32_t RetryAfterMs(const absl::Status& status) {
  if (status.GetPayload(kNeverFits).has_value()) return 0;
  switch (status.code()) {
    case absl::StatusCode::kAborted:
      return 5;  // another put of the cell is encoding: milliseconds
    case absl::StatusCode::kResourceExhausted:
    case absl::StatusCode::kUnavailable:
      return 50;
    default:
      return 0;
  }
}

void AddRetryHint(const absl::Status& status, grpc::CallbackServerContext* call) {
  const uint32_t retry_after_ms = RetryAfterMs(status);
  if (retry_after_ms == 0) return;
  call->AddTrailingMetadata("grpc-retry-pushback-ms", std::to_string(retry_after_ms));
}

grpc::Status ToGrpcStatus(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  return grpc::Status(static_cast<grpc::StatusCode>(status.code()), ShortMessage(status));
}

v1::ItemStatus ToItemStatus(const absl::Status& status) {
  v1::ItemStatus item;
  item.set_code(static_cast<int>(status.code()));
  item.set_message(ShortMessage(status));
  item.set_retry_after_ms(RetryAfterMs(status));
  return item;
}

}  // namespace sketchkv
