#include "service/rpc/segment_ref.h"

#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"

namespace sketchkv {

absl::Status SegmentBytes::CheckGuard() const {
  SKETCHKV_ASSIGN_OR_RETURN(const uint64_t found, segment->Load(guard_offset));
  if (found == guard) return absl::OkStatus();
  return absl::CancelledError(absl::StrCat("segment.guard is ", guard, "; by now it is ", found,
                                           ": the client took the payload's bytes back"));
}

absl::StatusOr<SegmentBytes> FindSegmentBytes(const ServiceContext& service,
                                              const v1::SegmentRef& ref) {
  if (service.segments == nullptr) {
    return absl::UnavailableError("this server shares no memory");
  }
  SegmentBytes found;
  SKETCHKV_ASSIGN_OR_RETURN(found.segment, service.segments->Find(ref.token()));
  SKETCHKV_ASSIGN_OR_RETURN(found.bytes, found.segment->View(ref.offset(), ref.length()));
  found.guard_offset = ref.guard_offset();
  found.guard = ref.guard();
  return found;
}

}  // namespace sketchkv
