#include "service/engine/parallel.h"

#include <utility>

#include "kernels/base/mutex.h"

namespace sketchkv {
namespace {

class FirstError {
 public:
  void Note(size_t index, absl::Status status) {
    MutexLock lock(&mu_);
    if (status_.ok() || index < index_) {
      index_ = index;
      status_ = std::move(status);
    }
  }
  [[nodiscard]] absl::Status status() {
    MutexLock lock(&mu_);
    return status_;
  }

 private:
  Mutex mu_;
  size_t index_ SKETCHKV_GUARDED_BY(mu_) = 0;
  absl::Status status_ SKETCHKV_GUARDED_BY(mu_);
};

}  // namespace

absl::Status ParallelForStatus(Executor* executor, size_t count,
                               const std::function<absl::Status(size_t)>& body) {
  FirstError error;
  executor->ParallelFor(count, [&](size_t i) {
    absl::Status status = body(i);
    if (!status.ok()) error.Note(i, std::move(status));
  });
  return error.status();
}

}  // namespace sketchkv
