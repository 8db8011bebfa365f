#include "service/rpc/codec_service.h"

#include <memory>
#include <utility>

#include "kernels/base/status_macros.h"
#include "service/rpc/convert.h"
#include "service/rpc/upload_stream.h"

namespace sketchkv {
namespace {

// Raw to encoded or back: a part in, a part out, nothing stored.
template <typename Request, typename Response>
class TransformStream : public UploadStream<Request, Response> {
 public:
  using UploadStream<Request, Response>::UploadStream;

 protected:
  using Transform = std::function<absl::StatusOr<uint64_t>(const Model&, const PartLayout&,
                                                           const Payload&, PartSink*)>;

  bool IsFirst(const Request& message) const final { return message.has_part(); }

  // The output is admitted at once, the input as it comes.
  absl::StatusOr<std::shared_ptr<Upload>> OpenTransform(const Request& first,
                                                        std::shared_ptr<const Model> model,
                                                        bool encoded, uint64_t output_bytes,
                                                        Transform transform) {
    PartLayout part = FromProto(first.part());
    auto upload = std::make_shared<Upload>();
    SKETCHKV_ASSIGN_OR_RETURN(upload->expected_bytes, ExpectedPayloadBytes(*model, part, encoded));
    if (!encoded) {
      SKETCHKV_ASSIGN_OR_RETURN(const CellRange range, ResolveRange(part.range, model->layout()));
      upload->raw.emplace(model->layout(), range, part.num_tokens, part.raw_order);
    }
    SKETCHKV_RETURN_IF_ERROR(
        this->service().inflight->CheckFits(upload->expected_bytes + output_bytes));
    SKETCHKV_ASSIGN_OR_RETURN(InflightBytes::Hold hold,
                              this->service().inflight->Acquire(output_bytes));
    upload->holds.push_back(std::move(hold));
    upload->deadline = this->service().Deadline(first.timeout_ms(), this->call());
    upload->run = [this, request_id = first.request_id(), model = std::move(model), part,
                   transform =
                       std::move(transform)](const std::shared_ptr<Upload>& complete) mutable {
      part.checksum = complete->checksum;
      this->AnswerPart(request_id, complete->holds.front(), [&](PartSink* sink) {
        const absl::StatusOr<uint64_t> checksum =
            transform(*model, part, complete->TakePayload(), sink);
        complete->holds.clear();  // the input is gone
        return checksum;
      });
    };
    return upload;
  }
};

class EncodeStream final : public TransformStream<v1::EncodeRequest, v1::EncodeResponse> {
 public:
  EncodeStream(ServiceContext* service, grpc::CallbackServerContext* call)
      : TransformStream(service, call) {
    Start();
  }

 private:
  absl::StatusOr<std::shared_ptr<Upload>> Open(const v1::EncodeRequest& first) override {
    SKETCHKV_ASSIGN_OR_RETURN(std::shared_ptr<const Model> model,
                              service().engine->models().Get(kDefaultTenant, first.model()));
    SKETCHKV_ASSIGN_OR_RETURN(const CellRange range,
                              ResolveRange(FromProto(first.part().range()), model->layout()));
    const uint64_t output_bytes = EncodedPartBytes(*model->codec, range);
    return OpenTransform(
        first, std::move(model), /*encoded=*/false, output_bytes,
        [this](const Model& of, const PartLayout& part, const Payload& payload, PartSink* sink) {
          return service().engine->Encode(of, part, payload, sink);
        });
  }
};

class DecodeStream final : public TransformStream<v1::DecodeRequest, v1::DecodeResponse> {
 public:
  DecodeStream(ServiceContext* service, grpc::CallbackServerContext* call)
      : TransformStream(service, call) {
    Start();
  }

 private:
  absl::StatusOr<std::shared_ptr<Upload>> Open(const v1::DecodeRequest& first) override {
    SKETCHKV_ASSIGN_OR_RETURN(std::shared_ptr<const Model> model,
                              service().engine->models().Get(kDefaultTenant, first.model()));
    SKETCHKV_ASSIGN_OR_RETURN(const DType dtype, FromProto("format.dtype", first.format().dtype()));
    SKETCHKV_ASSIGN_OR_RETURN(const RawOrder order,
                              FromProto("format.raw_order", first.format().raw_order()));
    SKETCHKV_ASSIGN_OR_RETURN(const CellRange range,
                              ResolveRange(FromProto(first.part().range()), model->layout()));
    SKETCHKV_RETURN_IF_ERROR(ValidateNumTokens(first.part().num_tokens(), model->layout()));
    const uint64_t output_bytes =
        RawPartFormat(model->layout(), range, first.part().num_tokens(), order, dtype, dtype)
            .total_bytes();
    return OpenTransform(first, std::move(model), /*encoded=*/true, output_bytes,
                         [this, dtype, order](const Model& of, const PartLayout& part,
                                              const Payload& payload, PartSink* sink) {
                           return service().engine->Decode(of, part, payload, dtype, order, sink);
                         });
  }
};

}  // namespace

RawBidiReactor* CodecService::Encode(grpc::CallbackServerContext* call) {
  return new EncodeStream(service_, call);
}

RawBidiReactor* CodecService::Decode(grpc::CallbackServerContext* call) {
  return new DecodeStream(service_, call);
}

}  // namespace sketchkv
