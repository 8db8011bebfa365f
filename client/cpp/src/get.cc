#include "client/cpp/src/get.h"

#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "client/cpp/src/convert.h"
#include "client/cpp/src/item_stream.h"
#include "client/cpp/src/part.h"
#include "client/cpp/src/payload.h"
#include "kernels/base/status_macros.h"

namespace sketchkv::client {
namespace {

class GetItem final : public StreamItem<v1::GetRequest, v1::GetResponse> {
 public:
  explicit GetItem(const GetPart* part) : part_(*part) {}

  absl::Status Prepare(const std::shared_ptr<const CachedModel>& model) {
    SKETCHKV_RETURN_IF_ERROR(CheckHash("block_hash", part_.block_hash));
    SKETCHKV_ASSIGN_OR_RETURN(range_, ResolveRange(part_.range, model->layout()));
    model_ = model;
    return absl::OkStatus();
  }

  void Reset() override {
    payload_ = {};
    result_ = {};
  }

  absl::StatusOr<bool> Fill(size_t, v1::GetRequest* request, std::vector<grpc::Slice>*) override {
    request->set_model(part_.model);
    request->set_block_hash(part_.block_hash);
    *request->mutable_range() = ToProto(range_);
    if (part_.type) {
      request->mutable_format()->set_dtype(ToProto(*part_.type));
      request->mutable_format()->set_raw_order(ToProto(part_.order));
    }
    return false;
  }
  bool IsOneMessage() const override { return true; }

  absl::Status Take(const v1::GetResponse& response,
                    const std::vector<grpc::Slice>& bulk) override {
    if (response.has_part() && !payload_.begun()) {
      result_.num_tokens = response.part().num_tokens();
      SKETCHKV_RETURN_IF_ERROR(CheckAnswered(response.part()));
      payload_.Begin(response.part(), WantBytes());
    }
    return payload_.Append(bulk);
  }

  absl::Status Complete() override {
    SKETCHKV_RETURN_IF_ERROR(payload_.Complete());
    result_.payload = payload_.Release();
    return absl::OkStatus();
  }

  [[nodiscard]] const GetPart& part() const { return part_; }
  [[nodiscard]] absl::StatusOr<GetResult> Result() {
    if (!outcome.status.ok()) return outcome.status;
    return std::move(result_);
  }

 private:
  absl::Status CheckAnswered(const v1::PartLayout& part) const {
    if (!CheckTokens(result_.num_tokens, model_->layout()).ok()) {
      return absl::InternalError(absl::StrCat("the server's block has ", result_.num_tokens,
                                              " tokens, the model's block_tokens is ",
                                              model_->layout().block_tokens));
    }
    v1::PartLayout want;
    *want.mutable_range() = ToProto(range_);
    want.set_num_tokens(result_.num_tokens);
    if (part_.type) {
      want.set_raw_order(ToProto(part_.order));
    } else {
      want.set_fingerprint(model_->info().fingerprint);
      want.set_format_version(model_->format_version());
    }
    return CheckPartAnswered(part, want);
  }
  uint64_t WantBytes() const {
    if (!part_.type) return EncodedBytes(model_->info(), range_);
    return RawShapeOf(model_->layout(), range_, result_.num_tokens, part_.type).total_bytes();
  }

  const GetPart& part_;
  std::shared_ptr<const CachedModel> model_;
  PartRange range_;
  ReceivedPayload payload_;
  GetResult result_;
};

}  // namespace

std::vector<absl::StatusOr<GetResult>> GetParts(ClientCore* core, ModelCache* models,
                                                std::span<const GetPart> parts,
                                                TimePoint deadline) {
  std::vector<std::unique_ptr<GetItem>> items;
  std::vector<StreamItem<v1::GetRequest, v1::GetResponse>*> sent;
  for (const GetPart& part : parts) {
    items.push_back(std::make_unique<GetItem>(&part));
    GetItem* item = items.back().get();
    item->outcome.status = models->With(part.model, deadline,
                                        [item](const auto& model) { return item->Prepare(model); });
    if (item->outcome.status.ok()) sent.push_back(item);
  }
  RunItems<v1::GetRequest, v1::GetResponse>(core, deadline, "/sketchkv.v1.Cache/Get", sent);

  std::vector<absl::StatusOr<GetResult>> results;
  results.reserve(items.size());
  for (const auto& item : items) {
    models->DropAfter(item->outcome.status, item->part().model);
    results.push_back(item->Result());
  }
  return results;
}

}  // namespace sketchkv::client
