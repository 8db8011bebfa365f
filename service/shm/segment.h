#pragma once

#include <array>
#include <atomic>
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
// the client cannot make an access fault by shrinking it, nor grow it. (It may punch holes; those
// are filled again where the system overcommits memory.) The bytes change whenever the client
// likes: read each once.
class Segment {
 public:
  // RESOURCE_EXHAUSTED when the system has no memory for it. `bytes` is a multiple of the page
  // size.
  [[nodiscard]] static absl::StatusOr<std::shared_ptr<Segment>> Create(uint64_t bytes);
  ~Segment();
  Segment(const Segment&) = delete;
  Segment& operator=(const Segment&) = delete;

  [[nodiscard]] int fd() const { return fd_; }
  // The client is gone: its pages go with the segment, whoever still holds the descriptor. Else
  // they would live, charged to this process, for as long as that. Not for a client that is there:
  // it would send the zeros.
  void DiscardAtEnd() { discard_ = true; }
  [[nodiscard]] uint64_t size() const { return bytes_.size(); }
  // INVALID_ARGUMENT with both numbers for bytes outside.
  [[nodiscard]] absl::StatusOr<std::span<std::byte>> View(uint64_t offset, uint64_t length) const;
  // The number at `offset`; INVALID_ARGUMENT where none of 8 aligned bytes lies.
  [[nodiscard]] absl::StatusOr<uint64_t> Load(uint64_t offset) const;

 private:
  Segment(int fd, std::span<std::byte> bytes) : fd_(fd), bytes_(bytes) {}

  const int fd_;
  const std::span<std::byte> bytes_;
  std::atomic<bool> discard_ = false;
};

}  // namespace sketchkv
