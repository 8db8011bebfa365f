#pragma once

#include <grpcpp/support/byte_buffer.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "proto/bulk_message.h"
#include "service/engine/part.h"
#include "service/rpc/convert.h"
#include "service/rpc/inflight.h"
#include "service/rpc/payload_slices.h"
#include "service/rpc/service_context.h"
#include "service/rpc/status.h"

namespace sketchkv {

// The messages that carry `part` back: chunks of at most kMaxChunkBytes, raw ones ending at the end
// of a row, the layout in the first and the status in the last. The payload is referred to, not
// copied; `hold` lives as long as gRPC needs it.
template <typename Response>
std::vector<grpc::ByteBuffer> PartMessages(uint64_t request_id, const Part& part,
                                           const InflightBytes::Hold& hold) {
  std::vector<grpc::ByteBuffer> messages;
  const uint64_t total = part.payload.size();
  uint64_t offset = 0;
  do {
    uint64_t end = std::min<uint64_t>(total, offset + kMaxChunkBytes);
    if (end < total && part.raw.has_value()) end = part.raw->FloorToRow(end);
    Response message;
    message.set_request_id(request_id);
    if (offset == 0) *message.mutable_part() = ToProto(part.layout, !part.raw.has_value());
    if (end == total) *message.mutable_status() = ToItemStatus(absl::OkStatus());
    messages.push_back(JoinMessage(message, SlicesOf(part.payload.Sub(offset, end), hold)));
    offset = end;
  } while (offset < total);
  return messages;
}

}  // namespace sketchkv
