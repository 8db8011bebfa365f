#include "client/cpp/src/get.h"

#include <cstring>
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
  GetItem(const GetPart* part, SegmentSource* segments, TimePoint deadline)
      : part_(*part), segments_(segments), deadline_(deadline) {}

  absl::Status Prepare(const std::shared_ptr<const CachedModel>& model) {
    SKETCHKV_RETURN_IF_ERROR(CheckHash("block_hash", part_.block_hash));
    SKETCHKV_ASSIGN_OR_RETURN(range_, ResolveRange(part_.range, model->layout()));
    if (part_.into_gpu && (!part_.type || !part_.into.empty())) {
      return absl::InvalidArgumentError(
          absl::StrCat("with into_gpu, into has ", part_.into.size(), " bytes and type is ",
                       part_.type ? "set" : "not set", ", want 0 and a type"));
    }
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
    if (part_.into_gpu) {
      *request->mutable_gpu_memory() = ToProto(*part_.into_gpu);
      return false;
    }
    segment_ = segments_->Get(deadline_);
    if (segment_ != nullptr) {
      region_ = segment_->AllocateTemporary(WantBytes(model_->layout().block_tokens), deadline_);
    }
    if (region_ != nullptr) *request->mutable_segment() = *segment_->Find(region_->bytes());
    return false;
  }
  bool IsOneMessage() const override { return true; }
  bool FillsAtOnce() const override { return part_.into_gpu.has_value(); }

  absl::Status Take(const v1::GetResponse& response,
                    const std::vector<grpc::Slice>& bulk) override {
    if (response.has_part() && !payload_.begun()) {
      result_.num_tokens = response.part().num_tokens();
      SKETCHKV_RETURN_IF_ERROR(CheckAnswered(response.part()));
      result_.payload_bytes = WantBytes(result_.num_tokens);
      SKETCHKV_RETURN_IF_ERROR(CheckRoom());
      std::byte* const into = part_.into.empty() ? nullptr : part_.into.data();
      if (Travels()) payload_.Begin(result_.payload_bytes, into);
    }
    return payload_.Append(bulk);
  }

  absl::Status Complete(const v1::GetResponse& last) override {
    if (Travels()) {
      SKETCHKV_RETURN_IF_ERROR(payload_.Complete(last.checksum()));
      result_.payload = payload_.Release();
      return absl::OkStatus();
    }
    if (result_.num_tokens == 0) return absl::InternalError("the server's answer has no part");
    if (part_.into_gpu) return absl::OkStatus();  // it is where it belongs
    const auto bytes = region_->bytes().first(result_.payload_bytes);
    if (part_.into.empty()) {
      ReservePayload(bytes.size(), &result_.payload);
      result_.payload.assign(bytes.begin(), bytes.end());
    } else {
      std::memcpy(part_.into.data(), bytes.data(), bytes.size());
    }
    return absl::OkStatus();
  }

  void Ended(bool answered) override {
    // What the server may still write to must not become another item's.
    if (region_ != nullptr && !answered) segments_->Retire(segment_.get());
    region_ = nullptr;
    segment_ = nullptr;
  }

  [[nodiscard]] const GetPart& part() const { return part_; }
  [[nodiscard]] absl::StatusOr<GetResult> Result() {
    if (!outcome.status.ok()) return outcome.status;
    return std::move(result_);
  }

 private:
  bool Travels() const { return region_ == nullptr && !part_.into_gpu; }
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
  absl::Status CheckRoom() const {
    if (part_.into_gpu && part_.into_gpu->length < result_.payload_bytes) {
      return absl::InternalError(absl::StrCat("into_gpu has ", part_.into_gpu->length,
                                              " bytes, the server wrote ", result_.payload_bytes));
    }
    if (part_.into.empty() || part_.into.size() >= result_.payload_bytes) return absl::OkStatus();
    return absl::InvalidArgumentError(absl::StrCat("into has ", part_.into.size(),
                                                   " bytes, the payload ", result_.payload_bytes));
  }
  uint64_t WantBytes(uint32_t num_tokens) const {
    if (!part_.type) return EncodedBytes(model_->info(), range_);
    return RawShapeOf(model_->layout(), range_, num_tokens, part_.type).total_bytes();
  }

  const GetPart& part_;
  SegmentSource* const segments_;
  const TimePoint deadline_;
  std::shared_ptr<SharedSegment> segment_;
  std::unique_ptr<SharedSegment::Region> region_;  // where the answer is written; null: it travels
  std::shared_ptr<const CachedModel> model_;
  PartRange range_;
  ReceivedPayload payload_;
  GetResult result_;
};

}  // namespace

std::vector<absl::StatusOr<GetResult>> GetParts(ClientCore* core, ModelCache* models,
                                                SegmentSource* segments,
                                                std::span<const GetPart> parts,
                                                TimePoint deadline) {
  std::vector<std::unique_ptr<GetItem>> items;
  std::vector<StreamItem<v1::GetRequest, v1::GetResponse>*> sent;
  for (const GetPart& part : parts) {
    items.push_back(std::make_unique<GetItem>(&part, segments, deadline));
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
