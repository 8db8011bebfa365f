#pragma once

#include <cstddef>
#include <deque>
#include <functional>
#include <thread>
#include <vector>

#include "kernels/base/mutex.h"

namespace sketchkv::client {

// Threads for asynchronous calls, started when needed, at most kMaxThreads; what is submitted
// beyond that waits its turn. Every task submitted runs, those still waiting at destruction too.
class AsyncPool {
 public:
  static constexpr size_t kMaxThreads = 16;

  AsyncPool() = default;
  ~AsyncPool();

  void Submit(std::function<void()> task);

 private:
  void RunTasks();

  Mutex mu_;
  CondVar changed_;
  bool stopping_ SKETCHKV_GUARDED_BY(mu_) = false;
  size_t idle_ SKETCHKV_GUARDED_BY(mu_) = 0;
  std::deque<std::function<void()>> tasks_ SKETCHKV_GUARDED_BY(mu_);
  std::vector<std::thread> threads_ SKETCHKV_GUARDED_BY(mu_);
};

}  // namespace sketchkv::client
