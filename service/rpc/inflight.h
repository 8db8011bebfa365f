#pragma once

#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "kernels/base/mutex.h"
#include "kernels/base/status_macros.h"
#include "service/rpc/status.h"

namespace sketchkv {

// Admission of payload bytes: what all requests under way hold together, in and out. The bound on
// this server's memory besides the pool. Thread-safe; outlives its holds.
class InflightBytes {
 public:
  // Gives its bytes back when the last reference goes.
  using Hold = std::shared_ptr<void>;

  explicit InflightBytes(uint64_t limit) : limit_(limit) {}

  // Whether it would fit if nothing else were under way.
  [[nodiscard]] absl::Status CheckFits(uint64_t bytes) const {
    if (bytes <= limit_) return absl::OkStatus();
    return NeverFitsError(absl::StrCat("this request holds ", bytes,
                                       " bytes while it is under way, of at most ", limit_));
  }

  // RESOURCE_EXHAUSTED naming what was asked for, what is in use and the limit.
  [[nodiscard]] absl::StatusOr<Hold> Acquire(uint64_t bytes) {
    SKETCHKV_RETURN_IF_ERROR(CheckFits(bytes));
    MutexLock lock(&mu_);
    if (bytes > limit_ - used_) {
      return absl::ResourceExhaustedError(absl::StrCat("this request holds ", bytes,
                                                       " bytes while it is under way; ", used_,
                                                       " of ", limit_, " are in use"));
    }
    used_ += bytes;
    return Hold(nullptr, [this, bytes](void*) { Release(bytes); });
  }

  [[nodiscard]] uint64_t used() const {
    MutexLock lock(&mu_);
    return used_;
  }

 private:
  void Release(uint64_t bytes) {
    MutexLock lock(&mu_);
    used_ -= bytes;
  }

  const uint64_t limit_;  // constant after construction
  mutable Mutex mu_;
  uint64_t used_ SKETCHKV_GUARDED_BY(mu_) = 0;
};

}  // namespace sketchkv
