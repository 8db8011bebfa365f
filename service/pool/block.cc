#include "service/pool/block.h"

#include "absl/status/status.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_format.h"
#include "absl/strings/string_view.h"

namespace sketchkv {

absl::StatusOr<BlockHash> BlockHash::FromBytes(std::span<const uint8_t> bytes) {
  if (bytes.size() < kMinBytes || bytes.size() > kMaxBytes) {
    return absl::InvalidArgumentError(absl::StrFormat("block hash: %d bytes, must be %d to %d",
                                                      bytes.size(), kMinBytes, kMaxBytes));
  }
  BlockHash hash;
  std::memcpy(hash.bytes_.data(), bytes.data(), bytes.size());
  hash.size_ = static_cast<uint8_t>(bytes.size());
  return hash;
}

std::string BlockHash::ToHex() const {
  return absl::BytesToHexString(
      absl::string_view(reinterpret_cast<const char*>(bytes_.data()), size_));
}

}  // namespace sketchkv
