#pragma once

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "service/engine/part.h"
#include "service/rpc/convert.h"
#include "service/rpc/service_context.h"
#include "service/rpc/status.h"

namespace sketchkv {

// The messages that carry `part` back: chunks of at most kMaxChunkBytes, raw ones ending at the end
// of a row, the layout in the first and the status in the last. A part that fits one chunk is moved.
template <typename Response>
std::vector<Response> PartMessages(uint64_t request_id, Part part) {
  std::vector<Response> messages;
  const size_t total = part.payload.size();
  size_t offset = 0;
  do {
    size_t end = std::min(total, offset + kMaxChunkBytes);
    if (end < total && part.raw.has_value()) end = part.raw->FloorToRow(end);
    Response message;
    message.set_request_id(request_id);
    if (offset == 0) *message.mutable_part() = ToProto(part.layout, !part.raw.has_value());
    if (end - offset == total) {
      message.set_payload(std::move(part.payload));
    } else {
      message.set_payload(part.payload.data() + offset, end - offset);
    }
    offset = end;
    if (offset == total) *message.mutable_status() = ToItemStatus(absl::OkStatus());
    messages.push_back(std::move(message));
  } while (offset < total);
  return messages;
}

}  // namespace sketchkv
