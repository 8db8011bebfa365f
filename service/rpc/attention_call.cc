#include "service/rpc/attention_call.h"

#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"
#include "service/rpc/convert.h"
#include "service/rpc/gpu_memory_ref.h"

namespace sketchkv {
namespace {

absl::StatusOr<SegmentBytes> FindBytes(const ServiceContext& service, const char* field,
                                       const v1::SegmentRef& ref) {
  absl::StatusOr<SegmentBytes> found = FindSegmentBytes(service, ref);
  if (found.ok()) return found;
  return absl::Status(found.status().code(), absl::StrCat(field, ": ", found.status().message()));
}

// Queries lie in one place.
absl::Status CheckNoneTravel(const v1::AttentionRequest& message, const char* field) {
  if (message.queries().empty()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("queries has ", message.queries().size(),
                                                 " bytes; with ", field, " it needs 0"));
}

absl::Status CheckNotBoth(bool segment, const char* name) {
  if (!segment) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(name, "_gpu_memory and ", name, "_segment: they lie in one of them"));
}

// The client can write to its segment at any time: what is checked must be what is used, so the
// queries are copied, once, before anything looks at them.
absl::Status CopyQueries(const ServiceContext& service, const v1::AttentionRequest& message,
                         AttentionCall* call) {
  SKETCHKV_RETURN_IF_ERROR(CheckNoneTravel(message, "queries_segment"));
  SKETCHKV_ASSIGN_OR_RETURN(const SegmentBytes shared,
                            FindBytes(service, "queries_segment", message.queries_segment()));
  const size_t bytes = shared.bytes.size();
  if (bytes % sizeof(float) != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("queries_segment.length is ", bytes, "; float32 needs a multiple of 4"));
  }
  SKETCHKV_ASSIGN_OR_RETURN(call->queries_hold, service.inflight->Acquire(bytes));
  call->queries.resize(bytes / sizeof(float));
  if (bytes > 0) std::memcpy(call->queries.data(), shared.bytes.data(), bytes);
  call->request.queries = call->queries;
  return shared.CheckGuard();
}

absl::Status FindOutputs(const ServiceContext& service, const v1::SegmentRef& ref,
                         AttentionCall* call) {
  SKETCHKV_ASSIGN_OR_RETURN(call->outputs, FindBytes(service, "outputs_segment", ref));
  if (ref.offset() % sizeof(float) != 0) {
    return absl::InvalidArgumentError(absl::StrCat("outputs_segment.offset is ", ref.offset(),
                                                   "; float32 needs a multiple of 4"));
  }
  if (call->outputs->bytes.size() >= call->output_bytes) return call->outputs->CheckGuard();
  return absl::InvalidArgumentError(absl::StrCat("outputs_segment.length is ",
                                                 call->outputs->bytes.size(), "; the answer has ",
                                                 call->output_bytes, " bytes"));
}

absl::Status OpenGpuQueries(const ServiceContext& service, const v1::AttentionRequest& message,
                            AttentionCall* call) {
  SKETCHKV_RETURN_IF_ERROR(CheckNoneTravel(message, "queries_gpu_memory"));
  SKETCHKV_RETURN_IF_ERROR(CheckNotBoth(message.has_queries_segment(), "queries"));
  SKETCHKV_ASSIGN_OR_RETURN(call->gpu_queries, OpenGpuMemory(service, "queries_gpu_memory",
                                                             message.queries_gpu_memory()));
  const std::span<const std::byte> bytes = call->gpu_queries->bytes;
  if (bytes.size() % sizeof(float) != 0) {
    return absl::InvalidArgumentError(absl::StrCat("queries_gpu_memory.length is ", bytes.size(),
                                                   "; float32 needs a multiple of 4"));
  }
  // They may have to be copied to the host.
  SKETCHKV_ASSIGN_OR_RETURN(call->queries_hold, service.inflight->Acquire(bytes.size()));
  call->request.queries = {reinterpret_cast<const float*>(bytes.data()),
                           bytes.size() / sizeof(float)};
  call->request.queries_place = Place::kGpu;
  return absl::OkStatus();
}

absl::Status OpenGpuOutputs(const ServiceContext& service, const v1::AttentionRequest& message,
                            AttentionCall* call) {
  SKETCHKV_RETURN_IF_ERROR(CheckNotBoth(message.has_outputs_segment(), "outputs"));
  SKETCHKV_ASSIGN_OR_RETURN(call->gpu_outputs, OpenGpuMemory(service, "outputs_gpu_memory",
                                                             message.outputs_gpu_memory()));
  call->request.answer_place = Place::kGpu;
  if (call->gpu_outputs->bytes.size() >= call->output_bytes) {
    // They may have to be made on the host.
    SKETCHKV_ASSIGN_OR_RETURN(call->outputs_hold, service.inflight->Acquire(call->output_bytes));
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      absl::StrCat("outputs_gpu_memory.length is ", call->gpu_outputs->bytes.size(),
                   "; the answer has ", call->output_bytes, " bytes"));
}

}  // namespace

absl::StatusOr<std::unique_ptr<AttentionCall>> ParseAttentionCall(
    const ServiceContext& service, const v1::AttentionRequest& message, TimePoint deadline,
    std::function<bool()> cancelled) {
  SKETCHKV_ASSIGN_OR_RETURN(std::shared_ptr<const Model> model,
                            service.engine->models().Get(kDefaultTenant, message.model()));
  auto call = std::make_unique<AttentionCall>();
  SKETCHKV_ASSIGN_OR_RETURN(call->request, FromProto(message, std::move(model), &call->queries));
  AttentionRequest& request = call->request;
  if (message.has_queries_gpu_memory()) {
    SKETCHKV_RETURN_IF_ERROR(OpenGpuQueries(service, message, call.get()));
  } else if (message.has_queries_segment()) {
    SKETCHKV_RETURN_IF_ERROR(CopyQueries(service, message, call.get()));
  }
  SKETCHKV_RETURN_IF_ERROR(ValidateAttention(request));
  request.patience.deadline = deadline;
  request.admit = [&service, hold = &call->hold](uint64_t bytes) -> absl::Status {
    SKETCHKV_ASSIGN_OR_RETURN(*hold, service.inflight->Acquire(bytes));
    return absl::OkStatus();
  };
  call->output_bytes = AnswerFloats(request) * sizeof(float);
  if (message.has_outputs_gpu_memory()) {
    SKETCHKV_RETURN_IF_ERROR(OpenGpuOutputs(service, message, call.get()));
  } else if (message.has_outputs_segment()) {
    SKETCHKV_RETURN_IF_ERROR(FindOutputs(service, message.outputs_segment(), call.get()));
  }
  request.patience.cancelled = [cancelled = std::move(cancelled), outputs = &call->outputs] {
    return (cancelled && cancelled()) || (outputs->has_value() && !(*outputs)->CheckGuard().ok());
  };
  return call;
}

absl::Status RunAttend(const ServiceContext& service, const AttentionCall& call,
                       std::string* payload) {
  if (call.gpu_outputs.has_value()) {
    auto* const answer = reinterpret_cast<float*>(call.gpu_outputs->bytes.data());
    return service.engine->Attend(kDefaultTenant, call.request,
                                  {answer, call.output_bytes / sizeof(float)});
  }
  if (!call.outputs.has_value() && call.output_bytes > kMaxChunkBytes) {
    return absl::InvalidArgumentError(absl::StrCat("the answer has ", call.output_bytes,
                                                   " bytes, of at most ", kMaxChunkBytes,
                                                   "; ask for fewer items or query tokens"));
  }
  if (call.outputs.has_value()) {
    auto* const answer = reinterpret_cast<float*>(call.outputs->bytes.data());
    const absl::Status attended = service.engine->Attend(
        kDefaultTenant, call.request, {answer, call.output_bytes / sizeof(float)});
    // First: bytes that were taken back say why the rest failed.
    SKETCHKV_RETURN_IF_ERROR(call.outputs->CheckGuard());
    return attended;
  }
  payload->resize(call.output_bytes);
  absl::Status attended =
      service.engine->Attend(kDefaultTenant, call.request,
                             {reinterpret_cast<float*>(payload->data()), call.output_bytes / 4});
  if (!attended.ok()) std::string().swap(*payload);  // clear() would keep the memory
  return attended;
}

}  // namespace sketchkv
