#include "service/engine/checksum.h"

#include <array>
#include <cstring>

#include "absl/strings/str_cat.h"

namespace sketchkv {

uint64_t PayloadChecksum(const Payload& payload) {
  RunningXxh3 checksum;
  for (const Payload::Fragment& fragment : payload.fragments()) checksum.Add(fragment.bytes);
  return checksum.Value();
}

absl::Status CheckPayload(uint64_t said, uint64_t found) {
  if (said == found) return absl::OkStatus();
  return absl::DataLossError(absl::StrCat("payload has checksum 0x", absl::Hex(found),
                                          "; its last message says 0x", absl::Hex(said)));
}

void SteppedChecksum::AddUpTo(uint64_t end) {
  MutexLock lock(&mu_);
  if (end <= end_) return;
  const Payload more = payload_.Sub(end_, end);
  for (const Payload::Fragment& fragment : more.fragments()) checksum_.Add(fragment.bytes);
  end_ = end;
}

uint64_t SteppedChecksum::Finish() {
  AddUpTo(payload_.size());
  MutexLock lock(&mu_);
  return checksum_.Value();
}

CellChecksummer::CellChecksummer(const BlockKey& key, uint32_t num_tokens) {
  std::array<uint8_t, sizeof(uint32_t) * 2 + sizeof(Fingerprint) + 1 + BlockHash::kMaxBytes>
      bound{};
  uint8_t* at = bound.data();
  const auto append = [&at](const void* data, size_t size) {
    std::memcpy(at, data, size);
    at += size;
  };
  append(&key.tenant, sizeof(key.tenant));
  append(&num_tokens, sizeof(num_tokens));
  append(key.fingerprint.data(), key.fingerprint.size());
  const uint8_t hash_size = static_cast<uint8_t>(key.hash.bytes().size());
  append(&hash_size, 1);
  append(key.hash.bytes().data(), hash_size);
  block_seed_ = XXH3_64bits(bound.data(), bound.size());
}

uint32_t CellChecksummer::Of(uint32_t layer, uint32_t head, std::span<const std::byte> cell) const {
  return static_cast<uint32_t>(XXH3_64bits_withSeed(cell.data(), cell.size(), SeedOf(layer, head)));
}

}  // namespace sketchkv
