#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace sketchkv {

// 16 random bytes. Who knows a segment's token may name bytes in it.
using SegmentToken = std::array<uint8_t, 16>;
[[nodiscard]] absl::StatusOr<SegmentToken> NewSegmentToken();

// Memory shared with one client. Its pages are there from the start and its size is sealed, so that
// nothing the client does makes an access fault or grow the server. The bytes change whenever the
// client likes: read each once.
class Segment {
 public:
  // RESOURCE_EXHAUSTED when the system has no memory for it. `bytes` is a multiple of the page
  // size.
  [[nodiscard]] static absl::StatusOr<std::shared_ptr<Segment>> Create(uint64_t bytes);
  ~Segment();
  Segment(const Segment&) = delete;
  Segment& operator=(const Segment&) = delete;

  [[nodiscard]] int fd() const { return fd_; }
  [[nodiscard]] uint64_t size() const { return bytes_.size(); }
  // INVALID_ARGUMENT with both numbers for bytes outside.
  [[nodiscard]] absl::StatusOr<std::span<std::byte>> View(uint64_t offset, uint64_t length) const;
  // The number at `offset`; INVALID_ARGUMENT where none of 8 aligned bytes lies.
  [[nodiscard]] absl::StatusOr<uint64_t> Load(uint64_t offset) const;

 private:
  Segment(int fd, std::span<std::byte> bytes) : fd_(fd), bytes_(bytes) {}

  const int fd_;
  const std::span<std::byte> bytes_;
};

}  // namespace sketchkv
