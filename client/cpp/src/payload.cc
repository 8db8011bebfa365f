#include "client/cpp/src/payload.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace sketchkv::client {

bool ChunkedPayload::Next(std::string* out) {
  const uint64_t end =
      raw_ ? RawChunkEnd(*raw_, sent_) : std::min<uint64_t>(bytes_.size(), sent_ + kMaxChunkBytes);
  out->assign(reinterpret_cast<const char*>(bytes_.data()) + sent_, end - sent_);
  sent_ = end;
  return sent_ < bytes_.size();
}

void ReceivedPayload::Begin(const v1::PartLayout& part, uint64_t want_bytes) {
  begun_ = true;
  want_bytes_ = want_bytes;
  checksum_ = part.checksum();
  bytes_.reserve(want_bytes);
}

absl::Status ReceivedPayload::Append(const std::string& chunk) {
  if (chunk.empty()) return absl::OkStatus();
  if (!begun_) return absl::InternalError("the server sent payload before its layout");
  if (chunk.size() > want_bytes_ - bytes_.size()) {
    return absl::InternalError(absl::StrCat("the server sent ", bytes_.size() + chunk.size(),
                                            " bytes of payload or more, want ", want_bytes_));
  }
  const auto* data = reinterpret_cast<const std::byte*>(chunk.data());
  bytes_.insert(bytes_.end(), data, data + chunk.size());
  return absl::OkStatus();
}

absl::Status ReceivedPayload::Complete() const {
  if (!begun_ || bytes_.size() != want_bytes_) {
    return absl::InternalError(
        absl::StrCat("the server sent ", bytes_.size(), " bytes of payload, want ", want_bytes_));
  }
  const uint64_t checksum = Checksum(bytes_);
  if (checksum != checksum_) {
    return absl::DataLossError(absl::StrCat("payload received has checksum ", absl::Hex(checksum),
                                            ", the server announced ", absl::Hex(checksum_)));
  }
  return absl::OkStatus();
}

}  // namespace sketchkv::client
