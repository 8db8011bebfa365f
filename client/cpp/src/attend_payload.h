#pragma once

#include <memory>
#include <span>
#include <vector>

#include "client/cpp/src/attend.h"
#include "client/cpp/src/segment_source.h"
#include "client/cpp/src/shared_segment.h"
#include "client/cpp/src/status.h"
#include "kernels/base/clock.h"
#include "sketchkv/types.h"
#include "sketchkv/v1/attention.pb.h"

namespace sketchkv::client {

// The queries of one try of an Attend on their way out and its outputs on their way in: in the
// messages, or in memory shared with the server where that pays, or the caller's queries lie there
// already, and there is room.
class AttendPayload {
 public:
  // All pointed to outlive the object.
  AttendPayload(const PreparedAttention* call, SegmentSource* segments, TimePoint deadline);
  // Without an answer the server may still write: the segment is not used again.
  ~AttendPayload();
  AttendPayload(const AttendPayload&) = delete;
  AttendPayload& operator=(const AttendPayload&) = delete;

  // The request to send, without request_id and timeout_ms.
  [[nodiscard]] v1::AttentionRequest Request() const;
  // The server's answer: its outputs, or why there are none. INTERNAL when it has another size than
  // the call asks for.
  [[nodiscard]] Outcome Take(const v1::AttendResponse& response,
                             std::vector<AttentionOutput>* outputs);
  // The try ended with this, which is no answer; `of_server`: the server itself said so, and is
  // done with the call.
  void Fail(bool of_server) { answered_ = of_server; }

 private:
  // in_place: the caller's queries lie in `segment`, which may be null otherwise.
  void Share(std::shared_ptr<SharedSegment> segment, bool in_place);

  const PreparedAttention& call_;
  SegmentSource& segments_;
  uint64_t output_bytes_ = 0;
  bool answered_ = false;
  // Null: all travels.
  std::shared_ptr<SharedSegment> segment_;
  std::unique_ptr<SharedSegment::Region>
      region_;                          // queries, unless the caller shares them; outputs
  std::span<const std::byte> queries_;  // in the segment
  std::span<std::byte> outputs_;        // in the region
};

}  // namespace sketchkv::client
