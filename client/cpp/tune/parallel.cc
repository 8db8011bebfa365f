#include "client/cpp/tune/parallel.h"

#include <algorithm>
#include <thread>
#include <vector>

#include "kernels/base/mutex.h"

namespace sketchkv::tune {
namespace {

// What the threads share.
class Work {
 public:
  Work(size_t count, const Progress& progress) : count_(count), progress_(progress) {}

  // The next number to work on; `count` when there is none.
  size_t Next() SKETCHKV_EXCLUDES(mu_) {
    const MutexLock lock(&mu_);
    return failed_ < count_ ? count_ : std::min(next_++, count_);
  }

  void Done(size_t number, absl::Status status) SKETCHKV_EXCLUDES(mu_) {
    const MutexLock lock(&mu_);
    if (!status.ok() && number < failed_) {
      failed_ = number;
      status_ = std::move(status);
    }
    if (progress_) progress_(++done_, count_);
  }

  absl::Status status() SKETCHKV_EXCLUDES(mu_) {
    const MutexLock lock(&mu_);
    return status_;
  }

 private:
  const size_t count_;
  const Progress& progress_;
  Mutex mu_;
  size_t next_ SKETCHKV_GUARDED_BY(mu_) = 0;
  size_t done_ SKETCHKV_GUARDED_BY(mu_) = 0;
  size_t failed_ SKETCHKV_GUARDED_BY(mu_) = SIZE_MAX;
  absl::Status status_ SKETCHKV_GUARDED_BY(mu_);
};

}  // namespace

absl::Status RunAll(size_t count, uint32_t num_threads, const Progress& progress,
                    const std::function<absl::Status(size_t)>& work) {
  Work shared(count, progress);
  const auto run = [&] {
    for (size_t i = shared.Next(); i < count; i = shared.Next()) shared.Done(i, work(i));
  };
  std::vector<std::thread> threads;
  for (size_t i = 1; i < std::min<size_t>(num_threads, count); ++i) threads.emplace_back(run);
  run();
  for (std::thread& thread : threads) thread.join();
  return shared.status();
}

}  // namespace sketchkv::tune
