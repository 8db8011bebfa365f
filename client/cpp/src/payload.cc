#include "client/cpp/src/payload.h"

#include <sys/mman.h>

#include <algorithm>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "kernels/base/status_macros.h"

namespace sketchkv::client {
namespace {

// Set aside at once; a payload that announces more grows as it comes.
constexpr uint64_t kMaxReserveBytes = 64 << 20;

absl::Status CheckField(absl::string_view field, uint64_t have, uint64_t want) {
  if (have == want) return absl::OkStatus();
  return absl::InternalError(
      absl::StrCat("the server's part has ", field, " ", have, ", want ", want));
}

}  // namespace

absl::Status CheckPartAnswered(const v1::PartLayout& part, const v1::PartLayout& want) {
  const v1::CellRange &have_range = part.range(), &want_range = want.range();
  SKETCHKV_RETURN_IF_ERROR(
      CheckField("layer_begin", have_range.layer_begin(), want_range.layer_begin()));
  SKETCHKV_RETURN_IF_ERROR(
      CheckField("layer_count", have_range.layer_count(), want_range.layer_count()));
  SKETCHKV_RETURN_IF_ERROR(
      CheckField("head_begin", have_range.head_begin(), want_range.head_begin()));
  SKETCHKV_RETURN_IF_ERROR(
      CheckField("head_count", have_range.head_count(), want_range.head_count()));
  SKETCHKV_RETURN_IF_ERROR(CheckField("num_tokens", part.num_tokens(), want.num_tokens()));
  if (want.raw_order() != v1::RAW_ORDER_UNSPECIFIED) {
    return CheckField("raw_order", part.raw_order(), want.raw_order());
  }
  if (part.fingerprint() != want.fingerprint()) {
    return absl::InternalError(absl::StrCat("the server's part has fingerprint ",
                                            absl::BytesToHexString(part.fingerprint()), ", want ",
                                            absl::BytesToHexString(want.fingerprint())));
  }
  return CheckField("format_version", part.format_version(), want.format_version());
}

void ReservePayload(uint64_t size, std::vector<std::byte>* payload) {
  constexpr size_t kHugeBytes = size_t{2} << 20;
  payload->reserve(size);
  const size_t before = -reinterpret_cast<uintptr_t>(payload->data()) % kHugeBytes;
  if (payload->capacity() < before + kHugeBytes) return;
  const size_t whole = (payload->capacity() - before) / kHugeBytes * kHugeBytes;
  (void)madvise(payload->data() + before, whole, MADV_HUGEPAGE);
}

bool ChunkedPayload::Next(std::vector<grpc::Slice>* out) {
  const uint64_t end =
      raw_ ? RawChunkEnd(*raw_, sent_) : std::min<uint64_t>(bytes_.size(), sent_ + kMaxChunkBytes);
  const std::span<const std::byte> chunk = bytes_.subspan(sent_, end - sent_);
  if (owner_ == nullptr) {
    out->emplace_back(chunk.data(), chunk.size());
  } else {
    using Owner = std::shared_ptr<const void>;
    out->emplace_back(
        const_cast<std::byte*>(chunk.data()), chunk.size(),
        [](void* owner) { delete static_cast<Owner*>(owner); }, new Owner(owner_));
  }
  sent_ = end;
  return sent_ < bytes_.size();
}

void ReceivedPayload::Begin(const v1::PartLayout& part, uint64_t want_bytes) {
  begun_ = true;
  want_bytes_ = want_bytes;
  checksum_ = part.checksum();
  ReservePayload(std::min(want_bytes, kMaxReserveBytes), &bytes_);
}

absl::Status ReceivedPayload::Append(const std::vector<grpc::Slice>& chunk) {
  for (const grpc::Slice& slice : chunk) {
    if (!begun_) return absl::InternalError("the server sent payload before its layout");
    if (slice.size() > want_bytes_ - bytes_.size()) {
      return absl::InternalError(absl::StrCat("the server sent ", bytes_.size() + slice.size(),
                                              " bytes of payload or more, want ", want_bytes_));
    }
    const auto* data = reinterpret_cast<const std::byte*>(slice.begin());
    bytes_.insert(bytes_.end(), data, data + slice.size());
    received_checksum_.Add({data, slice.size()});
  }
  return absl::OkStatus();
}

absl::Status ReceivedPayload::Complete() const {
  if (!begun_ || bytes_.size() != want_bytes_) {
    return absl::InternalError(
        absl::StrCat("the server sent ", bytes_.size(), " bytes of payload, want ", want_bytes_));
  }
  const uint64_t checksum = received_checksum_.Value();
  if (checksum != checksum_) {
    return absl::DataLossError(absl::StrCat("payload received has checksum ", absl::Hex(checksum),
                                            ", the server announced ", absl::Hex(checksum_)));
  }
  return absl::OkStatus();
}

}  // namespace sketchkv::client
