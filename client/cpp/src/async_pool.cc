#include "client/cpp/src/async_pool.h"

#include <utility>

namespace sketchkv::client {

AsyncPool::~AsyncPool() {
  std::vector<std::thread> threads;
  {
    MutexLock lock(&mu_);
    stopping_ = true;
    threads.swap(threads_);
    changed_.NotifyAll();
  }
  for (std::thread& thread : threads) thread.join();
}

void AsyncPool::Submit(std::function<void()> task) {
  MutexLock lock(&mu_);
  tasks_.push_back(std::move(task));
  if (tasks_.size() > idle_ && threads_.size() < kMaxThreads) {
    threads_.emplace_back([this] { RunTasks(); });
  }
  changed_.NotifyOne();
}

void AsyncPool::RunTasks() {
  mu_.Lock();
  while (true) {
    ++idle_;
    while (tasks_.empty() && !stopping_) changed_.Wait(&mu_);
    --idle_;
    if (tasks_.empty()) break;
    std::function<void()> task = std::move(tasks_.front());
    tasks_.pop_front();
    mu_.Unlock();
    task();
    task = nullptr;  // what it holds goes before the lock comes back
    mu_.Lock();
  }
  mu_.Unlock();
}

}  // namespace sketchkv::client
