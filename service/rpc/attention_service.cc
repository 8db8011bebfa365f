#include "service/rpc/attention_service.h"

#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"
#include "service/rpc/attention_call.h"
#include "service/rpc/computed_stream.h"
#include "service/rpc/item_stream.h"
#include "service/rpc/unary.h"

namespace sketchkv {
namespace {

using ScoreStream = ComputedStream<v1::ScoreResponse>;

// The chunk of tokens [begin, begin + count) of `result`, rows gathered.
v1::ScoreResponse ScoreChunk(uint64_t request_id, size_t item, const ScoreResult& result,
                             uint32_t begin, uint32_t count) {
  v1::ScoreResponse message;
  message.set_request_id(request_id);
  message.set_item(static_cast<uint32_t>(item));
  message.set_token_begin(result.token_begin + begin);
  message.set_token_count(count);
  std::string* payload = message.mutable_payload();
  const size_t rows = result.num_tokens == 0 ? 0 : result.logits.size() / result.num_tokens;
  payload->reserve(rows * count * sizeof(float));
  for (size_t row = 0; row < rows; ++row) {
    const float* from = result.logits.data() + row * result.num_tokens + begin;
    payload->append(reinterpret_cast<const char*>(from), count * sizeof(float));
  }
  return message;
}

absl::Status FillScores(const ServiceContext& service, const AttentionCall& call,
                        uint64_t request_id, std::deque<v1::ScoreResponse>* messages) {
  if (call.outputs.has_value() || call.gpu_outputs.has_value()) {
    return absl::InvalidArgumentError(
        absl::StrCat(call.outputs.has_value() ? "outputs_segment" : "outputs_gpu_memory",
                     ": the logits of Score always travel"));
  }
  SKETCHKV_ASSIGN_OR_RETURN(const std::vector<ScoreResult> results,
                            service.engine->Score(kDefaultTenant, call.request));
  for (size_t item = 0; item < results.size(); ++item) {
    const ScoreResult& result = results[item];
    const AttentionItem& asked = call.request.items[item];
    const uint64_t rows =
        uint64_t{asked.num_query_tokens} * asked.head_count * call.request.queries_per_kv_head;
    if (rows * sizeof(float) > kMaxChunkBytes) {
      return absl::InvalidArgumentError(absl::StrCat("items[", item, "] has ", rows,
                                                     " rows; one token of them does not fit ",
                                                     kMaxChunkBytes, " bytes"));
    }
    const uint32_t step = static_cast<uint32_t>(kMaxChunkBytes / (rows * sizeof(float)));
    uint32_t begin = 0;
    do {
      const uint32_t count = std::min(step, result.num_tokens - begin);
      messages->push_back(ScoreChunk(request_id, item, result, begin, count));
      begin += count;
    } while (begin < result.num_tokens);
  }
  *messages->back().mutable_status() = ToItemStatus(absl::OkStatus());
  return absl::OkStatus();
}

class AttendItemStream final : public ItemStream<v1::AttentionRequest, v1::AttendResponse> {
 public:
  AttendItemStream(ServiceContext* service, grpc::CallbackServerContext* call)
      : ItemStream(service, call) {
    Start();
  }

 private:
  absl::Status OnMessage(v1::AttentionRequest message, Payload queries) override {
    const uint64_t request_id = message.request_id();
    SKETCHKV_RETURN_IF_ERROR(BeginItem(request_id));
    const TimePoint deadline = service().Deadline(message.timeout_ms(), call());
    absl::StatusOr<InflightBytes::Hold> hold =
        service().inflight->Acquire(message.SpaceUsedLong() + queries.size());
    if (!hold.ok()) {
      AnswerError(request_id, hold.status());
      return absl::OkStatus();
    }
    message.set_queries(queries.ToString());  // floats in one piece; small beside the cache
    auto request = std::make_shared<v1::AttentionRequest>(std::move(message));
    Submit(request_id, deadline, [this, request_id, deadline, request, held = *std::move(hold)] {
      v1::AttendResponse message;
      message.set_request_id(request_id);
      absl::StatusOr<std::unique_ptr<AttentionCall>> parsed =
          ParseAttentionCall(service(), *request, deadline, [this] { return cancelled(); });
      absl::Status status = parsed.status();
      const auto payload = std::make_shared<std::string>();
      if (status.ok()) status = RunAttend(service(), **parsed, payload.get());
      *message.mutable_status() = ToItemStatus(status);
      Payload bulk;
      bulk.Append(std::as_bytes(std::span(*payload)), payload);
      std::vector<grpc::ByteBuffer> messages;
      messages.push_back(
          JoinMessage(message, SlicesOf(bulk, parsed.ok() ? (*parsed)->hold : nullptr)));
      // Before the answer: whoever has it may count on a worker's memory being given back.
      if (parsed.ok()) parsed->reset();
      Answer(request_id, std::move(messages));
    });
    return absl::OkStatus();
  }
};

}  // namespace

grpc::ServerWriteReactor<v1::ScoreResponse>* AttentionService::Score(
    grpc::CallbackServerContext* call, const v1::AttentionRequest* request) {
  const TimePoint deadline = service_->Deadline(request->timeout_ms(), *call);
  return new ScoreStream(*service_, call, request->timeout_ms(), [this, call, request, deadline] {
    ScoreStream::Result result;
    const absl::StatusOr<std::unique_ptr<AttentionCall>> parsed =
        ParseAttentionCall(*service_, *request, deadline, [call] { return call->IsCancelled(); });
    result.status = parsed.status();
    if (result.status.ok()) {
      result.status = FillScores(*service_, **parsed, request->request_id(), &result.messages);
      result.hold = (*parsed)->hold;
    }
    if (!result.status.ok()) result.messages.clear();
    return result;
  });
}

grpc::ServerUnaryReactor* AttentionService::Attend(grpc::CallbackServerContext* call,
                                                   const v1::AttentionRequest* request,
                                                   v1::AttendResponse* response) {
  const TimePoint deadline = service_->Deadline(request->timeout_ms(), *call);
  return RunUnary(*service_, call, request->timeout_ms(),
                  [this, call, request, response, deadline]() -> absl::Status {
                    SKETCHKV_ASSIGN_OR_RETURN(
                        const std::unique_ptr<AttentionCall> parsed,
                        ParseAttentionCall(*service_, *request, deadline,
                                           [call] { return call->IsCancelled(); }));
                    response->set_request_id(request->request_id());
                    return RunAttend(*service_, *parsed, response->mutable_payload());
                  });
}

RawBidiReactor* AttentionService::AttendStream(grpc::CallbackServerContext* call) {
  return new AttendItemStream(service_, call);
}

}  // namespace sketchkv
