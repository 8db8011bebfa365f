#include "service/rpc/attention_service.h"

#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"
#include "service/rpc/computed_stream.h"
#include "service/rpc/convert.h"
#include "service/rpc/item_stream.h"
#include "service/rpc/unary.h"

namespace sketchkv {
namespace {

using ScoreStream = ComputedStream<v1::ScoreResponse>;

// A request in domain types and what its views point to.
struct Parsed {
  AttentionRequest request;
  std::vector<float> aligned;
  uint64_t rows = 0;          // of all items together
  uint64_t output_bytes = 0;  // of an Attend answer
  InflightBytes::Hold hold;   // of what the engine makes for it
};

absl::StatusOr<std::unique_ptr<Parsed>> Parse(const ServiceContext& service,
                                              const v1::AttentionRequest& message,
                                              TimePoint deadline, std::function<bool()> cancelled) {
  SKETCHKV_ASSIGN_OR_RETURN(std::shared_ptr<const Model> model,
                            service.engine->models().Get(kDefaultTenant, message.model()));
  auto parsed = std::make_unique<Parsed>();
  SKETCHKV_ASSIGN_OR_RETURN(parsed->request,
                            FromProto(message, std::move(model), &parsed->aligned));
  AttentionRequest& request = parsed->request;
  SKETCHKV_RETURN_IF_ERROR(ValidateAttention(request));
  request.deadline = deadline;
  request.cancelled = std::move(cancelled);
  request.admit = [&service, hold = &parsed->hold](uint64_t bytes) -> absl::Status {
    SKETCHKV_ASSIGN_OR_RETURN(*hold, service.inflight->Acquire(bytes));
    return absl::OkStatus();
  };
  for (const AttentionItem& item : request.items) {
    parsed->rows += uint64_t{item.num_query_tokens} * item.head_count * request.queries_per_kv_head;
  }
  parsed->output_bytes = parsed->rows * (request.model->layout().value_dim + 1) * sizeof(float);
  return parsed;
}

absl::Status FillAttend(const ServiceContext& service, Parsed* parsed,
                        v1::AttendResponse* response) {
  if (parsed->output_bytes > kMaxChunkBytes) {
    return absl::InvalidArgumentError(absl::StrCat("the answer has ", parsed->output_bytes,
                                                   " bytes, of at most ", kMaxChunkBytes,
                                                   "; ask for fewer items or query tokens"));
  }
  SKETCHKV_ASSIGN_OR_RETURN(const std::vector<AttentionResult> results,
                            service.engine->Attend(kDefaultTenant, parsed->request));
  std::string* payload = response->mutable_payload();
  payload->reserve(parsed->output_bytes);
  const auto append = [payload](const std::vector<float>& floats) {
    payload->append(reinterpret_cast<const char*>(floats.data()), floats.size() * sizeof(float));
  };
  for (const AttentionResult& result : results) {
    append(result.out);
    append(result.lse);
  }
  return absl::OkStatus();
}

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

absl::Status FillScores(const ServiceContext& service, const Parsed& parsed, uint64_t request_id,
                        std::deque<v1::ScoreResponse>* messages) {
  SKETCHKV_ASSIGN_OR_RETURN(const std::vector<ScoreResult> results,
                            service.engine->Score(kDefaultTenant, parsed.request));
  for (size_t item = 0; item < results.size(); ++item) {
    const ScoreResult& result = results[item];
    const AttentionItem& asked = parsed.request.items[item];
    const uint64_t rows =
        uint64_t{asked.num_query_tokens} * asked.head_count * parsed.request.queries_per_kv_head;
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
      absl::StatusOr<std::unique_ptr<Parsed>> parsed =
          Parse(service(), *request, deadline, [this] { return cancelled(); });
      absl::Status status = parsed.status();
      if (status.ok()) status = FillAttend(service(), parsed->get(), &message);
      *message.mutable_status() = ToItemStatus(status);
      const auto payload =
          std::make_shared<const std::string>(std::move(*message.mutable_payload()));
      message.clear_payload();
      Payload bulk;
      bulk.Append(std::as_bytes(std::span(*payload)), payload);
      std::vector<grpc::ByteBuffer> messages;
      messages.push_back(
          JoinMessage(message, SlicesOf(bulk, parsed.ok() ? (*parsed)->hold : nullptr)));
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
    absl::StatusOr<std::unique_ptr<Parsed>> parsed =
        Parse(*service_, *request, deadline, [call] { return call->IsCancelled(); });
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
                    SKETCHKV_ASSIGN_OR_RETURN(const std::unique_ptr<Parsed> parsed,
                                              Parse(*service_, *request, deadline,
                                                    [call] { return call->IsCancelled(); }));
                    response->set_request_id(request->request_id());
                    return FillAttend(*service_, parsed.get(), response);
                  });
}

RawBidiReactor* AttentionService::AttendStream(grpc::CallbackServerContext* call) {
  return new AttendItemStream(service_, call);
}

}  // namespace sketchkv
