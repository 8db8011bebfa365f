#include "service/rpc/get_stream.h"

#include <utility>

#include "kernels/base/status_macros.h"
#include "service/rpc/convert.h"
#include "service/rpc/gpu_memory_ref.h"
#include "service/rpc/segment_ref.h"

namespace sketchkv {

GetStream::GetStream(ServiceContext* service, grpc::CallbackServerContext* call)
    : ItemStream(service, call) {
  Start();
}

absl::Status GetStream::OnMessage(v1::GetRequest message, Payload) {
  SKETCHKV_RETURN_IF_ERROR(BeginItem(message.request_id()));
  const absl::Status begun = Begin(message);
  if (!begun.ok()) AnswerError(message.request_id(), begun);
  return absl::OkStatus();
}

absl::Status GetStream::Begin(const v1::GetRequest& message) {
  Engine::GetRequest request;
  SKETCHKV_ASSIGN_OR_RETURN(request.model,
                            service().engine->models().Get(kDefaultTenant, message.model()));
  SKETCHKV_ASSIGN_OR_RETURN(request.hash, HashFromProto("block_hash", message.block_hash()));
  request.range = FromProto(message.range());
  if (message.has_format()) {
    SKETCHKV_ASSIGN_OR_RETURN(request.dtype, FromProto("format.dtype", message.format().dtype()));
    SKETCHKV_ASSIGN_OR_RETURN(request.raw_order,
                              FromProto("format.raw_order", message.format().raw_order()));
  }
  if (message.has_gpu_memory()) return BeginOnGpu(message, std::move(request));
  if (message.has_segment()) return BeginShared(message, std::move(request));
  SKETCHKV_ASSIGN_OR_RETURN(const uint64_t bytes, service().engine->MaxGetBytes(request));
  SKETCHKV_ASSIGN_OR_RETURN(const InflightBytes::Hold hold, service().inflight->Acquire(bytes));
  const uint64_t request_id = message.request_id();
  Submit(request_id, service().Deadline(message.timeout_ms(), call()),
         [this, request_id, hold, request = std::move(request)] {
           AnswerPart(request_id, hold, [&](PartSink* sink) {
             return service().engine->Get(kDefaultTenant, request, sink);
           });
         });
  return absl::OkStatus();
}

absl::Status GetStream::BeginShared(const v1::GetRequest& message, Engine::GetRequest request) {
  SKETCHKV_ASSIGN_OR_RETURN(const SegmentBytes shared,
                            FindSegmentBytes(service(), message.segment()));
  if (shared.bytes.empty()) {
    return absl::InvalidArgumentError("segment.length is 0; it needs the size of the answer");
  }
  request.into = shared.bytes;
  const uint64_t request_id = message.request_id();
  Submit(request_id, service().Deadline(message.timeout_ms(), call()),
         [this, request_id, shared, request = std::move(request)] {
           AnswerPart(request_id, /*hold=*/nullptr, [&](PartSink* sink) {
             return service().engine->Get(kDefaultTenant, request, sink);
           });
         });
  return absl::OkStatus();
}

absl::Status GetStream::BeginOnGpu(const v1::GetRequest& message, Engine::GetRequest request) {
  SKETCHKV_RETURN_IF_ERROR(CheckGpuMemoryRef(service(), "gpu_memory", message.gpu_memory()));
  if (message.has_segment()) {
    return absl::InvalidArgumentError("gpu_memory and segment: the payload goes to one of them");
  }
  if (!request.dtype.has_value()) {
    return absl::InvalidArgumentError("gpu_memory takes decoded payloads; there is no format");
  }
  request.into_place = Place::kGpu;
  const TimePoint deadline = service().Deadline(message.timeout_ms(), call());
  request.patience = {deadline, [this] { return cancelled(); }};
  const uint64_t request_id = message.request_id();
  Submit(request_id, deadline,
         [this, request_id, ref = message.gpu_memory(), request = std::move(request)]() mutable {
           // What goes over the host there is all in memory at once.
           const auto get = [&](PartSink* sink) -> absl::StatusOr<uint64_t> {
             InflightBytes::Hold hold;
             if (!service().engine->CodesOnGpu(request.model)) {
               SKETCHKV_ASSIGN_OR_RETURN(const uint64_t bytes,
                                         service().engine->MaxGetBytes(request));
               SKETCHKV_ASSIGN_OR_RETURN(hold, service().inflight->Acquire(bytes));
             }
             SKETCHKV_ASSIGN_OR_RETURN(const GpuBytes memory,
                                       OpenGpuMemory(service(), "gpu_memory", ref));
             request.into = memory.bytes;
             return service().engine->Get(kDefaultTenant, request, sink);
           };
           AnswerPart(request_id, /*hold=*/nullptr, get);
         });
  return absl::OkStatus();
}

}  // namespace sketchkv
