#pragma once

#include <cstdint>
#include <map>
#include <memory>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "kernels/base/mutex.h"
#include "service/shm/segment.h"

namespace sketchkv {

// The segments of all clients, by token, and the memory they take together. Thread-safe.
class SegmentTable {
 public:
  struct Limits {
    uint64_t client_bytes = 0;  // of one segment; a client has one
    uint64_t total_bytes = 0;
  };
  explicit SegmentTable(const Limits& limits) : limits_(limits) {}

  struct Added {
    SegmentToken token;
    std::shared_ptr<Segment> segment;
  };
  // A segment of `bytes`, or of what one client may have if that is less, in whole pages.
  // RESOURCE_EXHAUSTED with the numbers when all together would be too large.
  [[nodiscard]] absl::StatusOr<Added> Add(uint64_t bytes);
  // What requests under way still refer to goes with the last of them, and counts until then.
  // client_is_gone: nobody reads the bytes any more.
  void Remove(const SegmentToken& token, bool client_is_gone);
  // UNAVAILABLE for a token of no segment.
  [[nodiscard]] absl::StatusOr<std::shared_ptr<Segment>> Find(absl::string_view token) const;
  [[nodiscard]] uint64_t used_bytes() const;

 private:
  // Counts from before a segment is made until after it has gone.
  struct Budget {
    mutable Mutex mu;
    uint64_t used SKETCHKV_GUARDED_BY(mu) = 0;
  };

  const Limits limits_;
  const std::shared_ptr<Budget> budget_ = std::make_shared<Budget>();
  mutable Mutex mu_;
  std::map<SegmentToken, std::shared_ptr<Segment>> segments_ SKETCHKV_GUARDED_BY(mu_);
};

}  // namespace sketchkv
