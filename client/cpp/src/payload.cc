#include "client/cpp/src/payload.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "kernels/base/status_macros.h"

namespace sketchkv::client {
namespace {

// Set aside at once; a payload that announces more grows as it comes.
constexpr uint64_t kMaxReserveBytes = 64 << 20;

// Copied, then read for the checksum while they are in the nearest caches.
constexpr size_t kPieceBytes = size_t{64} << 10;

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
    out->push_back(Copy(chunk));
  } else {
    checksum_.Add(chunk);
    using Owner = std::shared_ptr<const void>;
    out->emplace_back(
        const_cast<std::byte*>(chunk.data()), chunk.size(),
        [](void* owner) { delete static_cast<Owner*>(owner); }, new Owner(owner_));
  }
  sent_ = end;
  return sent_ < bytes_.size();
}

grpc::Slice ChunkedPayload::Copy(std::span<const std::byte> chunk) {
  grpc::Slice copy(chunk.size());
  auto* to = const_cast<std::byte*>(reinterpret_cast<const std::byte*>(copy.begin()));
  for (size_t at = 0; at < chunk.size(); at += kPieceBytes) {
    const std::span<const std::byte> piece =
        chunk.subspan(at, std::min(kPieceBytes, chunk.size() - at));
    std::memcpy(to + at, piece.data(), piece.size());
    checksum_.Add({to + at, piece.size()});
  }
  return copy;
}

void ReceivedPayload::Begin(uint64_t want_bytes, std::byte* into) {
  begun_ = true;
  want_bytes_ = want_bytes;
  into_ = into;
  if (into == nullptr) ReservePayload(std::min(want_bytes, kMaxReserveBytes), &bytes_);
}

absl::Status ReceivedPayload::Append(const std::vector<grpc::Slice>& chunk) {
  for (const grpc::Slice& slice : chunk) {
    if (!begun_) return absl::InternalError("the server sent payload before its layout");
    if (slice.size() > want_bytes_ - received_bytes_) {
      return absl::InternalError(absl::StrCat("the server sent ", received_bytes_ + slice.size(),
                                              " bytes of payload or more, want ", want_bytes_));
    }
    const auto* data = reinterpret_cast<const std::byte*>(slice.begin());
    checksum_.Add({data, slice.size()});
    if (into_ == nullptr) {
      bytes_.insert(bytes_.end(), data, data + slice.size());
    } else {
      std::memcpy(into_ + received_bytes_, data, slice.size());
    }
    received_bytes_ += slice.size();
  }
  return absl::OkStatus();
}

absl::Status ReceivedPayload::Complete(uint64_t checksum) const {
  if (!begun_ || received_bytes_ != want_bytes_) {
    return absl::InternalError(
        absl::StrCat("the server sent ", received_bytes_, " bytes of payload, want ", want_bytes_));
  }
  const uint64_t received = checksum_.Value();
  if (received == checksum) return absl::OkStatus();
  return absl::DataLossError(absl::StrCat("payload received has checksum ", absl::Hex(received),
                                          ", the server announced ", absl::Hex(checksum)));
}

}  // namespace sketchkv::client
