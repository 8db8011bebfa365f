#include "client/cpp/src/transform.h"

#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "client/cpp/src/convert.h"
#include "client/cpp/src/item_stream.h"
#include "client/cpp/src/local_encoder.h"
#include "client/cpp/src/part.h"
#include "client/cpp/src/payload.h"
#include "client/cpp/src/put.h"
#include "kernels/base/status_macros.h"

namespace sketchkv::client {
namespace {

// Payload out, payload back: Encode and Decode differ in what stands round it.
template <typename Request, typename Response>
class TransformItem final : public StreamItem<Request, Response> {
 public:
  // `first` is message 0 without payload; `answer` and `answer_bytes` what must come back.
  TransformItem(Request first, std::span<const std::byte> payload, std::optional<RawShape> raw,
                v1::PartLayout answer, uint64_t answer_bytes)
      : first_(std::move(first)),
        payload_(payload),
        raw_(raw),
        answer_part_(std::move(answer)),
        answer_bytes_(answer_bytes) {}

  void Reset() override {
    upload_ = ChunkedPayload(payload_, raw_);
    answer_ = {};
  }
  absl::StatusOr<bool> Fill(size_t index, Request* request,
                            std::vector<grpc::Slice>* bulk) override {
    if (index == 0) *request = first_;
    if (upload_.Next(bulk)) return true;
    request->set_checksum(upload_.checksum());
    return false;
  }
  bool IsOneMessage() const override { return payload_.size() <= kMaxChunkBytes; }

  absl::Status Take(const Response& response, const std::vector<grpc::Slice>& bulk) override {
    if (response.has_part() && !answer_.begun()) {
      SKETCHKV_RETURN_IF_ERROR(CheckPartAnswered(response.part(), answer_part_));
      answer_.Begin(answer_bytes_);
    }
    return answer_.Append(bulk);
  }
  absl::Status Complete(const Response& last) override { return answer_.Complete(last.checksum()); }

  absl::StatusOr<std::vector<std::byte>> Result() {
    if (!this->outcome.status.ok()) return this->outcome.status;
    return answer_.Release();
  }

 private:
  const Request first_;
  const std::span<const std::byte> payload_;
  const std::optional<RawShape> raw_;
  const v1::PartLayout answer_part_;
  const uint64_t answer_bytes_;
  ChunkedPayload upload_;
  ReceivedPayload answer_;
};

}  // namespace

absl::StatusOr<std::vector<std::byte>> EncodePart(ClientCore* core, ModelCache* models,
                                                  const PutPart& part, TimePoint deadline) {
  if (part.encoded) return absl::InvalidArgumentError("encoded is true, Encode wants raw bytes");
  if (part.gpu_payload) {
    return absl::InvalidArgumentError("gpu_payload is set, Encode takes bytes in payload");
  }
  std::shared_ptr<const CachedModel> model;
  PartRange range;
  SKETCHKV_RETURN_IF_ERROR(models->With(part.model, deadline, [&](const auto& candidate) {
    SKETCHKV_ASSIGN_OR_RETURN(range, CheckPart(part, candidate->info()));
    model = candidate;
    return absl::OkStatus();
  }));
  if (core->options().encode_locally) {
    SKETCHKV_ASSIGN_OR_RETURN(const BlockCodec* codec, model->codec(core, deadline));
    return EncodeCells(*codec, range, part.num_tokens, part.order, part.payload);
  }
  v1::EncodeRequest first;
  first.set_model(part.model);
  *first.mutable_part() = LayoutOf(part, range, *model, /*encoded=*/false);
  TransformItem<v1::EncodeRequest, v1::EncodeResponse> item(
      std::move(first), part.payload, RawShapeOf(model->layout(), range, part.num_tokens),
      LayoutOf(part, range, *model, /*encoded=*/true), EncodedBytes(model->info(), range));
  RunItems<v1::EncodeRequest, v1::EncodeResponse>(core, deadline, "/sketchkv.v1.Codec/Encode",
                                                  {&item});
  models->DropAfter(item.outcome.status, part.model);
  return item.Result();
}

absl::StatusOr<std::vector<std::byte>> DecodeCells(ClientCore* core, ModelCache* models,
                                                   const DecodePart& part, TimePoint deadline) {
  std::shared_ptr<const CachedModel> model;
  PutPart as_put;
  as_put.num_tokens = part.num_tokens;
  as_put.range = part.range;
  as_put.payload = part.cells;
  as_put.encoded = true;
  PartRange range;
  SKETCHKV_RETURN_IF_ERROR(models->With(part.model, deadline, [&](const auto& candidate) {
    SKETCHKV_ASSIGN_OR_RETURN(range, CheckPart(as_put, candidate->info()));
    model = candidate;
    return absl::OkStatus();
  }));
  v1::DecodeRequest first;
  first.set_model(part.model);
  *first.mutable_part() = LayoutOf(as_put, range, *model, /*encoded=*/true);
  first.mutable_format()->set_dtype(ToProto(part.type));
  first.mutable_format()->set_raw_order(ToProto(part.order));
  as_put.order = part.order;  // of what comes back
  TransformItem<v1::DecodeRequest, v1::DecodeResponse> item(
      std::move(first), part.cells, std::nullopt,
      LayoutOf(as_put, range, *model, /*encoded=*/false),
      RawShapeOf(model->layout(), range, part.num_tokens, part.type).total_bytes());
  RunItems<v1::DecodeRequest, v1::DecodeResponse>(core, deadline, "/sketchkv.v1.Codec/Decode",
                                                  {&item});
  models->DropAfter(item.outcome.status, part.model);
  return item.Result();
}

}  // namespace sketchkv::client
