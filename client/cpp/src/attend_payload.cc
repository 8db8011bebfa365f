#include "client/cpp/src/attend_payload.h"

#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/base/checked_math.h"
#include "kernels/base/status_macros.h"

namespace sketchkv::client {
namespace {

// Queries and outputs together; less travels as fast in the messages.
constexpr uint64_t kMinSharedBytes = 64 << 10;

// One empty output an item: the numbers are in the caller's memory on a GPU.
std::vector<AttentionOutput> OutputsOnGpu(const PreparedAttention& call) {
  AttentionOutput output;
  output.transport = Transport::kGpuMemory;
  return std::vector<AttentionOutput>(call.rows.size(), output);
}

// The outputs of all items, one behind the other in `bytes`.
std::vector<AttentionOutput> SplitOutputs(const PreparedAttention& call, const std::byte* bytes,
                                          Transport transport) {
  std::vector<AttentionOutput> outputs;
  outputs.reserve(call.rows.size());
  const auto take = [&bytes](std::vector<float>* out, uint64_t count) {
    out->resize(count);
    std::memcpy(out->data(), bytes, count * sizeof(float));
    bytes += count * sizeof(float);
  };
  for (const uint64_t rows : call.rows) {
    AttentionOutput& output = outputs.emplace_back();
    take(&output.out, rows * call.value_dim);
    take(&output.lse, rows);
    output.transport = transport;
  }
  return outputs;
}

}  // namespace

AttendPayload::AttendPayload(const PreparedAttention* call, SegmentSource* segments,
                             TimePoint deadline)
    : call_(*call), segments_(*segments) {
  if (!call_.outputs_on_gpu) {
    for (const uint64_t rows : call_.rows) {
      output_bytes_ += rows * (call_.value_dim + 1) * sizeof(float);
    }
  }
  if (call_.outputs_on_gpu || call_.queries.empty()) return;  // what is left travels
  std::shared_ptr<SharedSegment> holding = segments_.Holding(std::as_bytes(call_.queries));
  const bool in_place = holding != nullptr;
  if (in_place) {
    Share(std::move(holding), in_place);
  } else if (call_.queries.size_bytes() + output_bytes_ >= kMinSharedBytes) {
    Share(segments_.Get(deadline), in_place);
  }
}

AttendPayload::~AttendPayload() {
  if (segment_ != nullptr && !answered_) segments_.Retire(segment_.get());
}

void AttendPayload::Share(std::shared_ptr<SharedSegment> segment, bool in_place) {
  if (segment == nullptr) return;
  queries_ = std::as_bytes(call_.queries);
  const uint64_t copied = in_place ? 0 : RoundUp(queries_.size(), RegionAllocator::kAlignment);
  // No waiting for room: these bytes travel in less time than a payload's.
  region_ = segment->Allocate(copied + output_bytes_);
  if (region_ == nullptr) return;
  if (!in_place) {
    std::memcpy(region_->bytes().data(), queries_.data(), queries_.size());
    queries_ = region_->bytes().first(queries_.size());
  }
  outputs_ = region_->bytes().subspan(copied);
  segment_ = std::move(segment);
}

v1::AttentionRequest AttendPayload::Request() const {
  v1::AttentionRequest request = call_.request;
  if (segment_ == nullptr) {
    if (!call_.queries.empty()) {
      request.set_queries(call_.queries.data(), call_.queries.size_bytes());
    }
  } else {
    *request.mutable_queries_segment() = *segment_->Find(queries_);
    *request.mutable_outputs_segment() = *segment_->Find(outputs_);
  }
  return request;
}

Outcome AttendPayload::Take(const v1::AttendResponse& response,
                            std::vector<AttentionOutput>* outputs) {
  answered_ = true;
  Outcome outcome = FromItem(response.status());
  if (!outcome.status.ok()) return outcome;
  const uint64_t want = segment_ == nullptr ? output_bytes_ : 0;
  if (response.payload().size() != want) {
    outcome.status = absl::InternalError(absl::StrCat("the server sent ", response.payload().size(),
                                                      " bytes of outputs, want ", want));
    return outcome;
  }
  if (call_.outputs_on_gpu) {
    *outputs = OutputsOnGpu(call_);
  } else if (segment_ == nullptr) {
    const auto* bytes = reinterpret_cast<const std::byte*>(response.payload().data());
    *outputs = SplitOutputs(call_, bytes, Transport::kGrpc);
  } else {
    *outputs = SplitOutputs(call_, outputs_.data(), Transport::kSharedMemory);
  }
  return outcome;
}

}  // namespace sketchkv::client
