#pragma once

#include <deque>
#include <utility>

#include "absl/strings/str_cat.h"
#include "service/engine/executor.h"

namespace sketchkv {

// An executor without threads: the test runs the queue, one task at a time, and ignores delays. Not
// thread-safe.
class ManualExecutor final : public Executor {
 public:
  explicit ManualExecutor(size_t max_queued = 1000) : max_queued_(max_queued) {}

  [[nodiscard]] absl::Status Submit(Task task) override {
    if (queue_.size() >= max_queued_) {
      return absl::ResourceExhaustedError(absl::StrCat("full: ", max_queued_));
    }
    queue_.push_back(std::move(task));
    return absl::OkStatus();
  }
  void ParallelFor(size_t count, const std::function<void(size_t)>& body) override {
    for (size_t i = count; i-- > 0;) body(i);  // backwards: an order no caller may rely on
  }

  // Runs the oldest task; false when there is none.
  bool RunOne() {
    if (queue_.empty()) return false;
    Task task = std::move(queue_.front());
    queue_.pop_front();
    task.run();
    return true;
  }
  [[nodiscard]] size_t queued() const { return queue_.size(); }

 private:
  const size_t max_queued_;
  std::deque<Task> queue_;
};

}  // namespace sketchkv
