#include "service/rpc/put_stream.h"

#include <algorithm>
#include <chrono>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"
#include "service/rpc/convert.h"
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
  if (!header.has_segment()) {
    SKETCHKV_RETURN_IF_ERROR(service().inflight->CheckFits(upload->expected_bytes));
  }
  if (header.has_segment()) {
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

void PutStream::Run(const std::shared_ptr<Item>& item) {
  const absl::StatusOr<Engine::PutResult> result =
      service().engine->Put(kDefaultTenant, item->request);
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
