#pragma once

#include <grpcpp/support/slice.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "client/cpp/src/part.h"
#include "sketchkv/v1/codec.pb.h"

namespace sketchkv::client {

// A payload on its way out, cut into chunks. The bytes must outlive it.
class ChunkedPayload {
 public:
  ChunkedPayload() = default;
  // `raw`: of a raw payload, whose chunks end at the end of a row; none: encoded cells. `owner`
  // keeps the bytes alive; none: chunks are copied, for gRPC may hold on to them for longer than
  // a call whose deadline has passed may last.
  ChunkedPayload(std::span<const std::byte> bytes, std::optional<RawShape> raw,
                 std::shared_ptr<const void> owner = nullptr)
      : bytes_(bytes), raw_(raw), owner_(std::move(owner)) {}

  // Appends the next chunk to `out`; true when more follow.
  bool Next(std::vector<grpc::Slice>* out);

 private:
  std::span<const std::byte> bytes_;
  std::optional<RawShape> raw_;
  std::shared_ptr<const void> owner_;
  uint64_t sent_ = 0;
};

// Whether the `part` a server answers with is what was asked for: INTERNAL naming the field and
// both values. Of `want`, the checksum is not read, and raw_order is set for raw payloads alone.
[[nodiscard]] absl::Status CheckPartAnswered(const v1::PartLayout& part,
                                             const v1::PartLayout& want);

// payload->reserve(size), asking for huge pages: to fault in small ones takes longer than to copy a
// payload into them.
void ReservePayload(uint64_t size, std::vector<std::byte>* payload);

// A payload on its way in.
class ReceivedPayload {
 public:
  // `part` describes a payload that must have exactly `want_bytes`.
  void Begin(const v1::PartLayout& part, uint64_t want_bytes);
  [[nodiscard]] bool begun() const { return begun_; }
  // Copies the chunk to its place; its checksum is made on the way. INTERNAL when the server sends
  // more than it announced, or before it announced anything.
  [[nodiscard]] absl::Status Append(const std::vector<grpc::Slice>& chunk);
  // INTERNAL when bytes are missing, DATA_LOSS when the checksum differs.
  [[nodiscard]] absl::Status Complete() const;
  [[nodiscard]] std::vector<std::byte> Release() { return std::move(bytes_); }

 private:
  bool begun_ = false;
  uint64_t want_bytes_ = 0;
  uint64_t checksum_ = 0;
  RunningChecksum received_checksum_;
  std::vector<std::byte> bytes_;
};

}  // namespace sketchkv::client
