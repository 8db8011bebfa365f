#include "service/rpc/put_stream.h"

#include <algorithm>
#include <chrono>
#include <deque>
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

// Shared with the tasks: one that finds nothing left may come when the stream is gone. While there
// is an item the stream is there too, for it has an answer to give.
struct PutStream::Ready {
  static constexpr size_t kMaxTasks = 2;
  static constexpr size_t kMaxItems = 16;  // of a task, at a time

  // What a task does next. None: it ends.
  Items Take() {
    MutexLock lock(&mu);
    Items taken;
    while (!items.empty() && taken.size() < kMaxItems) {
      taken.push_back(std::move(items.front()));
      items.pop_front();
    }
    if (taken.empty()) --tasks;
    return taken;
  }
  // A task will not run. What nobody does now: nothing, if another task is there.
  Items GiveUp() {
    MutexLock lock(&mu);
    Items left;
    if (--tasks > 0) return left;
    left.assign(items.begin(), items.end());
    items.clear();
    return left;
  }

  Mutex mu;
  std::deque<std::shared_ptr<Item>> items SKETCHKV_GUARDED_BY(mu);
  size_t tasks SKETCHKV_GUARDED_BY(mu) = 0;
};

PutStream::PutStream(ServiceContext* service, grpc::CallbackServerContext* call)
    : UploadStream(service, call), ready_(std::make_shared<Ready>()) {
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
    // What goes over the host needs a thread for itself.
    upload->hands_on = service().engine->CodesOnGpu(request.model);
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
    if (complete->hands_on) return AddReady(item);
    Run(item);
  };
  return upload;
}

absl::Status PutStream::CheckWhole(const v1::PutRequest& request) const {
  if (!request.payload().empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("payload has ", request.payload().size(), " bytes; among `more` it has none"));
  }
  if (request.header().has_segment() || request.header().has_gpu_memory()) return absl::OkStatus();
  return absl::InvalidArgumentError(
      "header has neither segment nor gpu_memory; among `more` it has one of them");
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

absl::Status PutStream::Prepare(Item* item) {
  if (!item->gpu_memory.has_value() || item->request.gpu_payload.has_value()) {
    return absl::OkStatus();
  }
  if (!service().engine->CodesOnGpu(item->request.model)) {  // it is copied to the host
    SKETCHKV_ASSIGN_OR_RETURN(InflightBytes::Hold hold,
                              service().inflight->Acquire(item->gpu_memory->length()));
    item->holds.push_back(std::move(hold));
  }
  SKETCHKV_ASSIGN_OR_RETURN(item->request.gpu_payload,
                            OpenGpuMemory(service(), "gpu_memory", *item->gpu_memory));
  return absl::OkStatus();
}

void PutStream::Run(const std::shared_ptr<Item>& item) {
  const absl::Status prepared = Prepare(item.get());
  Finish(item, prepared.ok() ? service().engine->Put(kDefaultTenant, item->request)
                             : absl::StatusOr<Engine::PutResult>(prepared));
}

void PutStream::AddReady(const std::shared_ptr<Item>& item) {
  MutexLock lock(&ready_->mu);
  ready_->items.push_back(item);
}

void PutStream::StartTask() {
  {
    MutexLock lock(&ready_->mu);
    if (ready_->items.empty() || ready_->tasks == Ready::kMaxTasks) return;
    ++ready_->tasks;
  }
  const auto drop = [this, ready = ready_](const absl::Status& why) {
    for (const auto& item : ready->GiveUp()) AnswerError(item->request_id, why);
  };
  const auto run = [this, ready = ready_] {
    Items first = ready->Take();
    if (!first.empty()) RunReady(ready, std::move(first));
  };
  const absl::Status submitted = service().executor->Submit({.run = run, .drop = drop});
  if (!submitted.ok()) drop(submitted);
}

void PutStream::RunReady(const std::shared_ptr<Ready>& ready, Items items) {
  for (Items next; !items.empty(); items = std::move(next)) {
    const std::vector<absl::StatusOr<Engine::PutResult>> results = PutTogether(items);
    // Before these are answered: with its last answer the stream may go.
    next = ready->Take();
    for (size_t i = 0; i < items.size(); ++i) Finish(items[i], results[i]);
  }
}

std::vector<absl::StatusOr<Engine::PutResult>> PutStream::PutTogether(const Items& items) {
  std::vector<absl::StatusOr<Engine::PutResult>> results(items.size(), Engine::PutResult());
  std::vector<const Engine::PutRequest*> requests;
  std::vector<size_t> item_of;  // [requests]
  for (size_t i = 0; i < items.size(); ++i) {
    absl::Status status = StillWanted(items[i]->deadline);
    if (status.ok()) status = Prepare(items[i].get());
    if (!status.ok()) {
      results[i] = status;
      continue;
    }
    requests.push_back(&items[i]->request);
    item_of.push_back(i);
  }
  std::vector<absl::StatusOr<Engine::PutResult>> put =
      service().engine->PutFromGpu(kDefaultTenant, requests);
  for (size_t i = 0; i < put.size(); ++i) results[item_of[i]] = std::move(put[i]);
  return results;
}

void PutStream::Finish(const std::shared_ptr<Item>& item,
                       const absl::StatusOr<Engine::PutResult>& result) {
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
  Answer(item->request_id, std::move(message));
}

}  // namespace sketchkv
