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
#include "kernels/base/xxh3.h"
#include "sketchkv/v1/codec.pb.h"

namespace sketchkv::client {

// A payload on its way out, cut into chunks, each looked at no sooner than it is asked for. The
// bytes must outlive it.
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
  // Of all chunks so far: the payload's once Next has said that none follow.
  [[nodiscard]] uint64_t checksum() const { return checksum_.Value(); }

 private:
  grpc::Slice Copy(std::span<const std::byte> chunk);

  std::span<const std::byte> bytes_;
  std::optional<RawShape> raw_;
  std::shared_ptr<const void> owner_;
  uint64_t sent_ = 0;
  RunningXxh3 checksum_;
};

// Whether the `part` a server answers with is what was asked for: INTERNAL naming the field and
// both values. Of `want`, raw_order is set for raw payloads alone.
[[nodiscard]] absl::Status CheckPartAnswered(const v1::PartLayout& part,
                                             const v1::PartLayout& want);

// payload->reserve(size), asking for huge pages: to fault in small ones takes longer than to copy a
// payload into them.
void ReservePayload(uint64_t size, std::vector<std::byte>* payload);

// A payload on its way in. What arrived means nothing before Complete says OK.
class ReceivedPayload {
 public:
  // The payload must have exactly `want_bytes`. They go to `into`, which has room for them; null:
  // to memory that Release gives.
  void Begin(uint64_t want_bytes, std::byte* into = nullptr);
  [[nodiscard]] bool begun() const { return begun_; }
  // Copies the chunk to its place; its checksum is made on the way. INTERNAL when the server sends
  // more than it announced, or before it announced anything.
  [[nodiscard]] absl::Status Append(const std::vector<grpc::Slice>& chunk);
  // `checksum`: of the whole payload, as the server says. INTERNAL when bytes are missing,
  // DATA_LOSS when the checksum differs.
  [[nodiscard]] absl::Status Complete(uint64_t checksum) const;
  [[nodiscard]] std::vector<std::byte> Release() { return std::move(bytes_); }

 private:
  bool begun_ = false;
  uint64_t want_bytes_ = 0;
  uint64_t received_bytes_ = 0;
  RunningXxh3 checksum_;
  std::byte* into_ = nullptr;
  std::vector<std::byte> bytes_;  // where nothing else is given
};

}  // namespace sketchkv::client
