#include "client/cpp/src/put.h"

#include <cstring>
#include <memory>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "client/cpp/src/convert.h"
#include "client/cpp/src/item_stream.h"
#include "client/cpp/src/local_encoder.h"
#include "client/cpp/src/part.h"
#include "client/cpp/src/payload.h"
#include "kernels/base/status_macros.h"

namespace sketchkv::client {
namespace {

// One part on its way. Chunks with their checksum and, with encode_locally, cells are made by the
// writing thread when their turn comes, so that what is before them is on the wire meanwhile.
class PutItem final : public StreamItem<v1::PutRequest, v1::PutResponse> {
 public:
  PutItem(const PutPart* part, bool encode_locally, SegmentSource* segments)
      : part_(*part),
        encode_(encode_locally && !part->encoded && !part->gpu_payload),
        segments_(segments) {}

  absl::Status Prepare(ClientCore* core, const std::shared_ptr<const CachedModel>& model,
                       TimePoint deadline) {
    SKETCHKV_RETURN_IF_ERROR(CheckHash("block_hash", part_.block_hash));
    if (!part_.parent_hash.empty()) {
      SKETCHKV_RETURN_IF_ERROR(CheckHash("parent_hash", part_.parent_hash));
    }
    SKETCHKV_ASSIGN_OR_RETURN(range_, CheckPart(part_, model->info()));
    if (encode_) {
      SKETCHKV_ASSIGN_OR_RETURN(codec_, model->codec(core, deadline));
    }
    model_ = model;
    deadline_ = deadline;
    return absl::OkStatus();
  }

  void Reset() override { payload_ = {}; }

  absl::StatusOr<bool> Fill(size_t index, v1::PutRequest* request,
                            std::vector<grpc::Slice>* bulk) override {
    if (index == 0) SKETCHKV_RETURN_IF_ERROR(Begin(request->mutable_header()));
    if (shared_ || part_.gpu_payload) return false;  // nothing travels
    if (payload_.Next(bulk)) return true;
    request->set_checksum(payload_.checksum());
    payload_ = {};  // sent: another round encodes anew
    return false;
  }

  bool IsOneMessage() const override {
    const uint64_t bytes = encode_ ? EncodedBytes(model_->info(), range_) : part_.payload.size();
    return bytes <= kMaxChunkBytes;
  }
  bool FillsAtOnce() const override {
    if (encode_) return false;
    return part_.gpu_payload.has_value() || segments_->Holding(part_.payload) != nullptr;
  }

  absl::Status Take(const v1::PutResponse& response, const std::vector<grpc::Slice>&) override {
    result_ = {response.already_present(), response.sealed()};
    return absl::OkStatus();
  }
  absl::Status Complete(const v1::PutResponse&) override { return absl::OkStatus(); }
  void Ended(bool answered) override {
    // The caller may change its own buffer from now on.
    if (segment_ != nullptr && region_ == nullptr && !answered) segment_->TakeBack(part_.payload);
    region_ = nullptr;
    segment_ = nullptr;
  }

  [[nodiscard]] const PutPart& part() const { return part_; }
  [[nodiscard]] bool encodes() const { return encode_; }
  [[nodiscard]] const CachedModel& model() const { return *model_; }
  [[nodiscard]] absl::StatusOr<PutResult> Result() const {
    if (!outcome.status.ok()) return outcome.status;
    return result_;
  }

 private:
  absl::Status Begin(v1::PutHeader* header) {
    std::span<const std::byte> bytes = part_.payload;
    std::shared_ptr<const std::vector<std::byte>> cells;
    if (encode_) {
      SKETCHKV_ASSIGN_OR_RETURN(
          std::vector<std::byte> encoded,
          EncodeCells(*codec_, range_, part_.num_tokens, part_.order, part_.payload));
      cells = std::make_shared<const std::vector<std::byte>>(std::move(encoded));
      bytes = *cells;
    }
    const bool encoded = encode_ || part_.encoded;
    if (part_.gpu_payload) {
      *header->mutable_gpu_memory() = ToProto(*part_.gpu_payload);
    } else if (!Share(bytes, header)) {
      std::optional<RawShape> raw;
      if (!encoded) raw = RawShapeOf(model_->layout(), range_, part_.num_tokens);
      payload_ = ChunkedPayload(bytes, raw, cells);
    }
    header->set_model(part_.model);
    header->set_block_hash(part_.block_hash);
    header->set_parent_hash(part_.parent_hash);
    header->set_encoded(encoded);
    *header->mutable_part() = LayoutOf(part_, range_, *model_, encoded);
    return absl::OkStatus();
  }

  // Names the payload's place in shared memory, where it is or is copied to; false: there is none.
  bool Share(std::span<const std::byte> bytes, v1::PutHeader* header) {
    shared_ = false;
    segment_ = segments_->Get(deadline_);
    if (segment_ == nullptr) return false;
    std::optional<v1::SegmentRef> ref = segment_->Find(bytes);
    if (!ref) {
      region_ = segment_->AllocateTemporary(bytes.size(), deadline_);
      if (region_ == nullptr) {
        segment_ = nullptr;
        return false;
      }
      std::memcpy(region_->bytes().data(), bytes.data(), bytes.size());
      ref = segment_->Find(region_->bytes());
    }
    *header->mutable_segment() = *std::move(ref);
    shared_ = true;
    return true;
  }

  const PutPart& part_;
  const bool encode_;
  SegmentSource* const segments_;
  TimePoint deadline_;
  std::shared_ptr<const CachedModel> model_;
  const BlockCodec* codec_ = nullptr;  // of model_, with encode_
  PartRange range_;
  ChunkedPayload payload_;
  // Where the payload is shared. The writer alone asks `shared_`: an answer may end the item, and
  // with it the other two, while later messages are still being filled.
  bool shared_ = false;
  std::shared_ptr<SharedSegment> segment_;
  std::unique_ptr<SharedSegment::Region> region_;  // where it was copied there
  PutResult result_;
};

void RunPuts(ClientCore* core, TimePoint deadline, const std::vector<PutItem*>& items) {
  RunItems<v1::PutRequest, v1::PutResponse>(core, deadline, "/sketchkv.v1.Cache/Put",
                                            {items.begin(), items.end()});
}

// Parts encoded here for a model that another one replaced: prepared again for the new one.
std::vector<PutItem*> Outdated(ClientCore* core, ModelCache* models, TimePoint deadline,
                               const std::vector<PutItem*>& items) {
  std::vector<PutItem*> outdated;
  for (PutItem* item : items) {
    if (!item->encodes() || !absl::IsInvalidArgument(item->outcome.status)) continue;
    const auto model = models->Get(item->part().model, deadline);
    if (!model.ok() || (*model)->info().fingerprint == item->model().info().fingerprint) continue;
    absl::Status status = item->Prepare(core, *model, deadline);
    if (status.ok()) {
      outdated.push_back(item);
    } else {
      item->outcome.status = std::move(status);
    }
  }
  return outdated;
}

}  // namespace

absl::StatusOr<PartRange> CheckPart(const PutPart& part, const ModelInfo& model) {
  SKETCHKV_RETURN_IF_ERROR(CheckTokens(part.num_tokens, model.layout));
  SKETCHKV_ASSIGN_OR_RETURN(const PartRange range, ResolveRange(part.range, model.layout));
  if (part.gpu_payload && (part.encoded || !part.payload.empty())) {
    return absl::InvalidArgumentError(absl::StrCat(
        "with gpu_payload, payload has ", part.payload.size(), " bytes and encoded is ",
        part.encoded ? "true" : "false", ", want 0 and false"));
  }
  if (part.encoded) {
    SKETCHKV_RETURN_IF_ERROR(
        CheckPayload(part.payload.size(), EncodedBytes(model, range), "the range's cells"));
    return range;
  }
  if (part.order != sketchkv::RawOrder::kNhd && part.order != sketchkv::RawOrder::kHnd) {
    return absl::InvalidArgumentError(
        absl::StrCat("order is ", static_cast<int>(part.order), ", want 1 (NHD) or 2 (HND)"));
  }
  SKETCHKV_RETURN_IF_ERROR(
      CheckPayload(part.gpu_payload ? part.gpu_payload->length : part.payload.size(),
                   RawShapeOf(model.layout, range, part.num_tokens).total_bytes(),
                   absl::StrCat(range.layer_count, " layers of ", range.head_count, " heads and ",
                                part.num_tokens, " tokens")));
  return range;
}

v1::PartLayout LayoutOf(const PutPart& part, const PartRange& range, const CachedModel& model,
                        bool encoded) {
  v1::PartLayout layout;
  *layout.mutable_range() = ToProto(range);
  layout.set_num_tokens(part.num_tokens);
  if (encoded) {
    layout.set_fingerprint(model.info().fingerprint);
    layout.set_format_version(model.format_version());
  } else {
    layout.set_raw_order(ToProto(part.order));
  }
  return layout;
}

std::vector<absl::StatusOr<PutResult>> PutParts(ClientCore* core, ModelCache* models,
                                                SegmentSource* segments,
                                                std::span<const PutPart> parts,
                                                TimePoint deadline) {
  std::vector<std::unique_ptr<PutItem>> items;
  std::vector<PutItem*> sent;
  for (const PutPart& part : parts) {
    items.push_back(std::make_unique<PutItem>(&part, core->options().encode_locally, segments));
    PutItem* item = items.back().get();
    item->outcome.status = models->With(part.model, deadline, [&](const auto& model) {
      return item->Prepare(core, model, deadline);
    });
    if (item->outcome.status.ok()) sent.push_back(item);
  }
  RunPuts(core, deadline, sent);
  for (const PutItem* item : sent) models->DropAfter(item->outcome.status, item->part().model);
  RunPuts(core, deadline, Outdated(core, models, deadline, sent));

  std::vector<absl::StatusOr<PutResult>> results;
  results.reserve(items.size());
  for (const auto& item : items) results.push_back(item->Result());
  return results;
}

}  // namespace sketchkv::client
