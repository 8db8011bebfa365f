#include "service/rpc/status.h"

#include <string>

#include "absl/strings/cord.h"

namespace sketchkv {
namespace {

constexpr char kNeverFits[] = "sketchkv.never_fits";

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

grpc::Status ToGrpcStatus(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  return grpc::Status(static_cast<grpc::StatusCode>(status.code()), std::string(status.message()));
}

v1::ItemStatus ToItemStatus(const absl::Status& status) {
  v1::ItemStatus item;
  item.set_code(static_cast<int>(status.code()));
  item.set_message(std::string(status.message()));
  item.set_retry_after_ms(RetryAfterMs(status));
  return item;
}

}  // namespace sketchkv
