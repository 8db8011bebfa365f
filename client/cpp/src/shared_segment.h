#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "absl/status/statusor.h"
#include "client/cpp/src/region_allocator.h"
#include "kernels/base/clock.h"
#include "kernels/base/mutex.h"
#include "sketchkv/v1/types.pb.h"

namespace sketchkv::client {

// Memory shared with a server on this machine, and the connection that keeps it. Thread-safe.
//
// In front of each region stands its guard, a number that changes when the region is freed or taken
// back: a server that still reads then does not store what it read.
class SharedSegment : public std::enable_shared_from_this<SharedSegment> {
 public:
  // Of the server with this id, else UNAVAILABLE; so too when nobody listens at `path`, or answers
  // until `deadline`. Other codes are the server's.
  [[nodiscard]] static absl::StatusOr<std::shared_ptr<SharedSegment>> Open(
      const std::string& path, uint64_t bytes, const std::string& server, TimePoint deadline);
  ~SharedSegment();
  SharedSegment(const SharedSegment&) = delete;
  SharedSegment& operator=(const SharedSegment&) = delete;

  // False once the server has closed the connection.
  [[nodiscard]] bool alive() const;

  // Bytes that are taken while this lives.
  class Region {
   public:
    Region(std::shared_ptr<SharedSegment> segment, uint64_t offset, uint64_t bytes, bool temporary);
    ~Region();
    Region(const Region&) = delete;
    Region& operator=(const Region&) = delete;
    [[nodiscard]] std::span<std::byte> bytes() const;

   private:
    const std::shared_ptr<SharedSegment> segment_;
    const uint64_t offset_;  // of the guard; the bytes follow it at once
    const uint64_t bytes_;
    const bool temporary_;
  };
  // For as long as the caller likes. Null when there is no room.
  [[nodiscard]] std::unique_ptr<Region> Allocate(uint64_t bytes);
  // For one item on its way. Waits until `deadline` for room that other such items take.
  [[nodiscard]] std::unique_ptr<Region> AllocateTemporary(uint64_t bytes, TimePoint deadline);

  // The server may still write to one of its regions: no memory of it is given out from now on. To
  // be called before that region is freed.
  void Retire();

  // How a message names these bytes; none: they lie in no region.
  [[nodiscard]] std::optional<v1::SegmentRef> Find(std::span<const std::byte> bytes);
  // These bytes, which lie in a region, may be written from now on whatever the server reads.
  void TakeBack(std::span<const std::byte> bytes);

 private:
  SharedSegment(int socket_fd, std::span<std::byte> memory, std::string token);
  [[nodiscard]] std::optional<uint64_t> RegionOf(std::span<const std::byte> bytes) const
      SKETCHKV_REQUIRES(mu_);
  [[nodiscard]] std::unique_ptr<Region> TryAllocate(uint64_t bytes, bool temporary)
      SKETCHKV_REQUIRES(mu_);
  void SetGuard(uint64_t region) SKETCHKV_REQUIRES(mu_);
  void Free(uint64_t region, bool temporary);

  const int socket_fd_;
  const std::span<std::byte> memory_;
  const std::string token_;
  Mutex mu_;
  CondVar freed_;
  RegionAllocator regions_ SKETCHKV_GUARDED_BY(mu_);
  size_t num_temporary_ SKETCHKV_GUARDED_BY(mu_) = 0;
  bool retired_ SKETCHKV_GUARDED_BY(mu_) = false;
  uint64_t next_guard_ SKETCHKV_GUARDED_BY(mu_);
};

}  // namespace sketchkv::client
