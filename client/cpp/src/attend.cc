#include "client/cpp/src/attend.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "client/cpp/src/attend_payload.h"
#include "client/cpp/src/convert.h"
#include "client/cpp/src/part.h"
#include "kernels/base/status_macros.h"

namespace sketchkv::client {
namespace {

constexpr uint32_t kMaxQueriesPerHead = 128;
constexpr size_t kMaxItems = 4'096;
constexpr uint32_t kMaxQueryTokens = 1'024;
// Of a whole request: 4 MiB less 32 KiB. One over the server's limit of 4 MiB would end an
// AttendSession's stream for every call on it.
constexpr uint64_t kMaxRequestBytes = kMaxChunkBytes + 32'768;

absl::Status CheckBound(absl::string_view field, uint64_t value, uint64_t low, uint64_t high) {
  if (value >= low && value <= high) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(field, " is ", value, ", want ", low, " to ", high));
}

absl::Status CheckScale(absl::string_view field, float value) {
  if (std::isfinite(value) && value >= 0) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(field, " is ", value, ", want 0 or more, finite"));
}

absl::Status FillTarget(const AttentionItem& item, v1::AttentionItem* out) {
  const int targets = !item.tip.empty() + !item.blocks.empty() + (item.lease_id != 0);
  if (targets != 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("of tip, blocks and lease_id ", targets, " are set, want exactly 1"));
  }
  if (!item.tip.empty()) {
    SKETCHKV_RETURN_IF_ERROR(CheckHash("tip", item.tip));
    out->set_tip(item.tip);
  } else if (!item.blocks.empty()) {
    SKETCHKV_RETURN_IF_ERROR(CheckChain("blocks", item.blocks));
    for (const BlockId& block : item.blocks) out->mutable_blocks()->add_block_hashes(block);
  } else {
    out->set_lease_id(item.lease_id);
  }
  return absl::OkStatus();
}

// Fills `out` and returns the item's number of kv heads.
absl::StatusOr<uint32_t> FillItem(const AttentionItem& item, const CacheLayout& layout,
                                  v1::AttentionItem* out) {
  SKETCHKV_RETURN_IF_ERROR(FillTarget(item, out));
  SKETCHKV_ASSIGN_OR_RETURN(
      const PartRange range,
      ResolveRange({item.layer, 1, item.head_begin, item.head_count}, layout));
  SKETCHKV_RETURN_IF_ERROR(
      CheckBound("num_query_tokens", item.num_query_tokens, 1, kMaxQueryTokens));
  SKETCHKV_RETURN_IF_ERROR(CheckScale("softmax_scale", item.softmax_scale));
  SKETCHKV_RETURN_IF_ERROR(CheckScale("logit_softcap", item.logit_softcap));
  if (item.token_end && *item.token_end < item.token_begin) {
    return absl::InvalidArgumentError(
        absl::StrCat("token_end ", *item.token_end, " is below token_begin ", item.token_begin));
  }
  out->set_layer(item.layer);
  out->set_head_begin(range.head_begin);
  out->set_head_count(range.head_count);
  out->set_num_query_tokens(item.num_query_tokens);
  out->set_token_begin(item.token_begin);
  if (item.token_end) out->set_token_end(*item.token_end);
  out->set_softmax_scale(item.softmax_scale);
  out->set_logit_softcap(item.logit_softcap);
  return range.head_count;
}

// `count`: of the numbers the items take.
absl::Status PlaceQueries(const AttentionCall& call, uint64_t count, PreparedAttention* prepared) {
  if (!call.gpu_queries) {
    prepared->queries = call.queries;
    if (call.queries.size() == count) return absl::OkStatus();
    return absl::InvalidArgumentError(
        absl::StrCat("queries has ", call.queries.size(), " numbers, the items take ", count));
  }
  if (!call.queries.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("queries has ", call.queries.size(), " numbers, want 0 with gpu_queries"));
  }
  *prepared->request.mutable_queries_gpu_memory() = ToProto(*call.gpu_queries);
  if (call.gpu_queries->length == count * sizeof(float)) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("gpu_queries has ", call.gpu_queries->length,
                                                 " bytes, the items take ", count * sizeof(float)));
}

absl::Status PlaceOutputs(const AttentionCall& call, uint64_t bytes, PreparedAttention* prepared) {
  if (!call.gpu_outputs) return absl::OkStatus();
  prepared->outputs_on_gpu = true;
  *prepared->request.mutable_outputs_gpu_memory() = ToProto(*call.gpu_outputs);
  if (call.gpu_outputs->length >= bytes) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("gpu_outputs has ", call.gpu_outputs->length,
                                                 " bytes, the outputs take ", bytes));
}

absl::StatusOr<PreparedAttention> Prepare(const AttentionCall& call, const CacheLayout& layout) {
  SKETCHKV_RETURN_IF_ERROR(
      CheckBound("queries_per_kv_head", call.queries_per_kv_head, 1, kMaxQueriesPerHead));
  SKETCHKV_RETURN_IF_ERROR(CheckBound("items", call.items.size(), 1, kMaxItems));
  PreparedAttention prepared;
  prepared.value_dim = layout.value_dim;
  prepared.request.set_model(call.model);
  prepared.request.set_queries_per_kv_head(call.queries_per_kv_head);
  uint64_t rows = 0;
  for (size_t i = 0; i < call.items.size(); ++i) {
    const auto heads = FillItem(call.items[i], layout, prepared.request.add_items());
    if (!heads.ok()) {
      return absl::Status(heads.status().code(),
                          absl::StrCat("items[", i, "]: ", heads.status().message()));
    }
    prepared.rows.push_back(uint64_t{call.items[i].num_query_tokens} * *heads *
                            call.queries_per_kv_head);
    rows += prepared.rows.back();
  }
  SKETCHKV_RETURN_IF_ERROR(PlaceQueries(call, rows * layout.head_dim, &prepared));
  const uint64_t outputs = rows * (layout.value_dim + 1) * sizeof(float);
  SKETCHKV_RETURN_IF_ERROR(PlaceOutputs(call, outputs, &prepared));
  // Request and answer each travel as one message.
  const uint64_t bytes =
      std::max<uint64_t>(call.queries.size_bytes(), prepared.outputs_on_gpu ? 0 : outputs);
  if (bytes > kMaxChunkBytes) {
    return absl::InvalidArgumentError(absl::StrCat("queries or outputs take ", bytes,
                                                   " bytes, one call carries ", kMaxChunkBytes,
                                                   ": split it"));
  }
  const uint64_t message_bytes = prepared.request.ByteSizeLong() + call.queries.size_bytes();
  if (message_bytes > kMaxRequestBytes) {
    return absl::InvalidArgumentError(absl::StrCat("queries, items and their blocks take ",
                                                   message_bytes, " bytes, one call carries ",
                                                   kMaxRequestBytes, ": split it"));
  }
  return prepared;
}

// Chunks of one item's logits, as they come.
struct ScoreChunk {
  uint32_t token_begin = 0;
  uint32_t token_count = 0;
  std::string payload;
};

absl::StatusOr<ScoreOutput> JoinChunks(std::vector<ScoreChunk> chunks, uint64_t rows,
                                       uint32_t token_begin) {
  std::sort(chunks.begin(), chunks.end(),
            [](const ScoreChunk& a, const ScoreChunk& b) { return a.token_begin < b.token_begin; });
  ScoreOutput out;
  out.token_begin = chunks.empty() ? token_begin : chunks.front().token_begin;
  for (const ScoreChunk& chunk : chunks) {
    if (chunk.token_begin != out.token_begin + out.num_tokens) {
      return absl::InternalError(absl::StrCat("the server's logits go on at token ",
                                              chunk.token_begin, ", want ",
                                              out.token_begin + out.num_tokens));
    }
    if (chunk.payload.size() != rows * chunk.token_count * sizeof(float)) {
      return absl::InternalError(absl::StrCat("the server sent ", chunk.payload.size(),
                                              " bytes of logits, want ",
                                              rows * chunk.token_count * sizeof(float)));
    }
    out.num_tokens += chunk.token_count;
  }
  out.logits.resize(rows * out.num_tokens);
  for (const ScoreChunk& chunk : chunks) {
    if (chunk.token_count == 0) continue;
    const uint64_t first = chunk.token_begin - out.token_begin;
    const size_t bytes = chunk.token_count * sizeof(float);
    for (uint64_t row = 0; row < rows; ++row) {
      std::memcpy(out.logits.data() + row * out.num_tokens + first,
                  chunk.payload.data() + row * bytes, bytes);
    }
  }
  return out;
}

// Reads the whole stream of one try into chunks[item].
Outcome ReadScores(grpc::ClientReader<v1::ScoreResponse>* stream,
                   const grpc::ClientContext& context,
                   std::vector<std::vector<ScoreChunk>>* chunks) {
  v1::ScoreResponse response;
  Outcome outcome{absl::InternalError("the server ended the stream without an answer"), 0};
  while (stream->Read(&response)) {
    if (response.has_status()) outcome = FromItem(response.status());
    if (response.item() >= chunks->size() || response.payload().empty()) continue;
    (*chunks)[response.item()].push_back(
        {response.token_begin(), response.token_count(), std::move(*response.mutable_payload())});
  }
  const Outcome ended = FromCall(stream->Finish(), context);
  return ended.status.ok() ? outcome : ended;
}

}  // namespace

absl::StatusOr<PreparedAttention> PrepareAttention(ModelCache* models, const AttentionCall& call,
                                                   TimePoint deadline) {
  PreparedAttention prepared;
  SKETCHKV_RETURN_IF_ERROR(models->With(call.model, deadline, [&](const auto& model) {
    SKETCHKV_ASSIGN_OR_RETURN(prepared, Prepare(call, model->layout()));
    return absl::OkStatus();
  }));
  return prepared;
}

absl::StatusOr<std::vector<AttentionOutput>> AttendOnce(ClientCore* core, ModelCache* models,
                                                        SegmentSource* segments,
                                                        const AttentionCall& call,
                                                        TimePoint deadline) {
  SKETCHKV_ASSIGN_OR_RETURN(const PreparedAttention prepared,
                            PrepareAttention(models, call, deadline));
  std::vector<AttentionOutput> outputs;
  const absl::Status status = WithRetries(core, deadline, [&](grpc::ClientContext* context) {
    AttendPayload payload(&prepared, segments, deadline);
    v1::AttentionRequest request = payload.Request();
    request.set_timeout_ms(RemainingMs(deadline));
    v1::AttendResponse response;
    const Outcome ended = FromCall(core->attention().Attend(context, request, &response), *context);
    if (ended.status.ok()) return payload.Take(response, &outputs);
    payload.Fail(IsOfServer(ended));
    return ended;
  });
  models->DropAfter(status, call.model);
  SKETCHKV_RETURN_IF_ERROR(status);
  return outputs;
}

absl::StatusOr<std::vector<ScoreOutput>> ScoreOnce(ClientCore* core, ModelCache* models,
                                                   const AttentionCall& call, TimePoint deadline) {
  if (call.gpu_outputs) {
    return absl::InvalidArgumentError("gpu_outputs is set, the logits of Score always travel");
  }
  SKETCHKV_ASSIGN_OR_RETURN(PreparedAttention prepared, PrepareAttention(models, call, deadline));
  if (!call.gpu_queries) {
    prepared.request.set_queries(call.queries.data(), call.queries.size_bytes());
  }
  std::vector<std::vector<ScoreChunk>> chunks;
  const absl::Status status = WithRetries(core, deadline, [&](grpc::ClientContext* context) {
    chunks.assign(call.items.size(), {});
    prepared.request.set_timeout_ms(RemainingMs(deadline));
    return ReadScores(core->attention().Score(context, prepared.request).get(), *context, &chunks);
  });
  models->DropAfter(status, call.model);
  SKETCHKV_RETURN_IF_ERROR(status);
  std::vector<ScoreOutput> outputs;
  for (size_t i = 0; i < chunks.size(); ++i) {
    absl::StatusOr<ScoreOutput> output =
        JoinChunks(std::move(chunks[i]), prepared.rows[i], call.items[i].token_begin);
    models->DropAfter(output.status(), call.model);
    SKETCHKV_RETURN_IF_ERROR(output.status());
    outputs.push_back(*std::move(output));
  }
  return outputs;
}

}  // namespace sketchkv::client
