#pragma once

#include <cstddef>
#include <memory>
#include <span>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "service/rpc/service_context.h"
#include "sketchkv/v1/types.pb.h"

namespace sketchkv {

// Bytes in a client's segment, named by a message. The segment stays mapped as long as this lives.
struct SegmentBytes {
  std::shared_ptr<Segment> segment;
  std::span<std::byte> bytes;
  uint64_t guard_offset = 0;
  uint64_t guard = 0;

  // CANCELLED when the client has taken the bytes back, so that what was read of them may be of
  // something else.
  [[nodiscard]] absl::Status CheckGuard() const;
};

// UNAVAILABLE: no such segment. INVALID_ARGUMENT: bytes or guard outside it, with both numbers.
[[nodiscard]] absl::StatusOr<SegmentBytes> FindSegmentBytes(const ServiceContext& service,
                                                            const v1::SegmentRef& ref);

}  // namespace sketchkv
