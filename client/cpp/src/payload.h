#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "client/cpp/src/part.h"
#include "sketchkv/v1/codec.pb.h"

namespace sketchkv::client {

// A payload on its way out, cut into chunks. The bytes must outlive it.
class ChunkedPayload {
 public:
  ChunkedPayload() = default;
  // `raw`: of a raw payload, whose chunks end at the end of a row; none: encoded cells.
  ChunkedPayload(std::span<const std::byte> bytes, std::optional<RawShape> raw)
      : bytes_(bytes), raw_(raw) {}

  // Moves the next chunk into `out`; true when more follow.
  bool Next(std::string* out);

 private:
  std::span<const std::byte> bytes_;
  std::optional<RawShape> raw_;
  uint64_t sent_ = 0;
};

// Whether the `part` a server answers with is what was asked for: INTERNAL naming the field and
// both values. Of `want`, the checksum is not read, and raw_order is set for raw payloads alone.
[[nodiscard]] absl::Status CheckPartAnswered(const v1::PartLayout& part,
                                             const v1::PartLayout& want);

// A payload on its way in.
class ReceivedPayload {
 public:
  // `part` describes a payload that must have exactly `want_bytes`.
  void Begin(const v1::PartLayout& part, uint64_t want_bytes);
  [[nodiscard]] bool begun() const { return begun_; }
  // INTERNAL when the server sends more than it announced, or before it announced anything.
  [[nodiscard]] absl::Status Append(const std::string& chunk);
  // INTERNAL when bytes are missing, DATA_LOSS when the checksum differs.
  [[nodiscard]] absl::Status Complete() const;
  [[nodiscard]] std::vector<std::byte> Release() { return std::move(bytes_); }

 private:
  bool begun_ = false;
  uint64_t want_bytes_ = 0;
  uint64_t checksum_ = 0;
  std::vector<std::byte> bytes_;
};

}  // namespace sketchkv::client
