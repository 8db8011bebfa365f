#include "service/rpc/put_stream.h"

#include <algorithm>
#include <chrono>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"
#include "service/rpc/convert.h"
#include "service/rpc/gpu_memory_ref.h"
#include "service/rpc/segment_ref.h"

namespace sketchkv {

// The first and the longest pause before cells that another put is writing are asked for again: it
// encodes for milliseconds.
constexpr std::chrono::milliseconds kFirstPause{1};
constexpr std::chrono::milliseconds kLongestPause{16};

struct PutStream::Item {
  uint64_t request_id = 0;
  TimePoint deadline;
  Engine::PutRequest request;
  std::optional<v1::GpuMemoryRef> gpu_memory;  // where the payload lies, not opened yet
  std::chrono::milliseconds pause = kFirstPause;
  std::vector<InflightBytes::Hold> holds;
};

PutStream::PutStream(ServiceContext* service, grpc::CallbackServerContext* call)
    : UploadStream(service, call) {
  Start();
}

absl::StatusOr<std::shared_ptr<Upload>> PutStream::Open(const v1::PutRequest& first) {
  const v1::PutHeader& header = first.header();
  auto item = std::make_shared<Item>();
  item->request_id = first.request_id();
  item->deadline = service().Deadline(first.timeout_ms(), call());
  Engine::PutRequest& request = item->request;
  SKETCHKV_ASSIGN_OR_RETURN(request.model,
                            service().engine->models().Get(kDefaultTenant, header.model()));
  const size_t slot_bytes = request.model->shape.slot_bytes;
  const size_t budget_bytes = service().engine->pool().budget_bytes();
  if (slot_bytes > budget_bytes) {
    return NeverFitsError(absl::StrCat("a block of model ", header.model(), " has ", slot_bytes,
                                       " bytes; the pool has ", budget_bytes));
  }
  SKETCHKV_ASSIGN_OR_RETURN(request.hash, HashFromProto("block_hash", header.block_hash()));
  if (!header.parent_hash().empty()) {
    SKETCHKV_ASSIGN_OR_RETURN(request.parent, HashFromProto("parent_hash", header.parent_hash()));
  }
  request.part = FromProto(header.part());
  request.encoded = header.encoded();

  auto upload = std::make_shared<Upload>();
  SKETCHKV_ASSIGN_OR_RETURN(upload->expected_bytes,
                            ExpectedPayloadBytes(*request.model, request.part, request.encoded));
  if (!request.encoded) {
    SKETCHKV_ASSIGN_OR_RETURN(const CellRange range,
                              ResolveRange(request.part.range, request.model->layout()));
    upload->raw.emplace(request.model->layout(), range, request.part.num_tokens,
                        request.part.raw_order);
  }
  if (header.has_gpu_memory()) {
    SKETCHKV_RETURN_IF_ERROR(CheckGpuMemory(header, upload->expected_bytes));
    item->gpu_memory = header.gpu_memory();
    // The worker uses the bytes for something else once it has given up waiting.
    request.still_valid = [this, deadline = item->deadline] { return StillWanted(deadline); };
    upload->received_bytes = upload->expected_bytes;
  } else if (!header.has_segment()) {
    SKETCHKV_RETURN_IF_ERROR(service().inflight->CheckFits(upload->expected_bytes));
  } else {
    SKETCHKV_ASSIGN_OR_RETURN(const SegmentBytes shared,
                              FindSegmentBytes(service(), header.segment()));
    if (shared.bytes.size() != upload->expected_bytes) {
      return absl::InvalidArgumentError(absl::StrCat("segment.length is ", shared.bytes.size(),
                                                     "; the part needs ", upload->expected_bytes));
    }
    SKETCHKV_RETURN_IF_ERROR(shared.CheckGuard());
    request.still_valid = [shared] { return shared.CheckGuard(); };
    Payload payload;
    payload.Append(shared.bytes, shared.segment);
    upload->SetWhole(payload);
  }
  upload->deadline = item->deadline;
  upload->run = [this, item](const std::shared_ptr<Upload>& complete) {
    item->request.payload = complete->TakePayload();
    item->request.part.checksum = complete->checksum;
    item->holds = std::move(complete->holds);
    Run(item);
  };
  return upload;
}

absl::Status PutStream::CheckGpuMemory(const v1::PutHeader& header, uint64_t payload_bytes) const {
  SKETCHKV_RETURN_IF_ERROR(CheckGpuMemoryRef(service(), "gpu_memory", header.gpu_memory()));
  if (header.has_segment()) {
    return absl::InvalidArgumentError("gpu_memory and segment: the payload lies in one of them");
  }
  if (header.encoded()) {
    return absl::InvalidArgumentError("gpu_memory takes raw payloads; encoded is true");
  }
  if (header.gpu_memory().length() == payload_bytes) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      "gpu_memory.length is ", header.gpu_memory().length(), "; the part needs ", payload_bytes));
}

absl::Status PutStream::StillWanted(TimePoint deadline) const {
  if (cancelled()) return absl::CancelledError("the put was cancelled while it ran");
  if (service().clock->Now() < deadline) return absl::OkStatus();
  return absl::DeadlineExceededError("the put's time was over before its payload was encoded");
}

absl::StatusOr<Engine::PutResult> PutStream::Put(Item* item) {
  if (item->gpu_memory.has_value() && !item->request.gpu_payload.has_value()) {
    if (!service().engine->CodesOnGpu(item->request.model)) {  // it is copied to the host
      SKETCHKV_ASSIGN_OR_RETURN(InflightBytes::Hold hold,
                                service().inflight->Acquire(item->gpu_memory->length()));
      item->holds.push_back(std::move(hold));
    }
    SKETCHKV_ASSIGN_OR_RETURN(item->request.gpu_payload,
                              OpenGpuMemory(service(), "gpu_memory", *item->gpu_memory));
  }
  return service().engine->Put(kDefaultTenant, item->request);
}

void PutStream::Run(const std::shared_ptr<Item>& item) {
  const absl::StatusOr<Engine::PutResult> result = Put(item.get());
  if (absl::IsAborted(result.status())) {
    // Another put of the same cells is encoding right now; whoever of the two loses must not say
    // "already there" before the other has committed.
    const auto pause = item->pause;
    item->pause = std::min(2 * pause, kLongestPause);
    return Submit(
        item->request_id, item->deadline, [this, item] { Run(item); }, pause);
  }
  // Before the answer: whoever has it may count on the bytes being given back.
  item->request.payload = Payload();
  item->request.gpu_payload = std::nullopt;
  item->request.still_valid = nullptr;
  item->holds.clear();
  if (!result.ok()) return AnswerError(item->request_id, result.status());
  v1::PutResponse message;
  message.set_request_id(item->request_id);
  *message.mutable_status() = ToItemStatus(absl::OkStatus());
  message.set_already_present(result->already_present);
  message.set_sealed(result->sealed);
  Answer(item->request_id, message);
}

}  // namespace sketchkv
