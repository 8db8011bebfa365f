#include "service/engine/executor.h"

#include <algorithm>
#include <atomic>
#include <utility>

#include "absl/strings/str_cat.h"

namespace sketchkv {
namespace {

// How long the caller of a loop looks for the end of indices that others hold before it sleeps:
// about as long as one takes. To sleep and be woken takes 20 us and more.
constexpr std::chrono::microseconds kLookout{50};

}  // namespace

// A parallel loop that idle workers may join. The caller takes part until no index is left and then
// waits for the indices others hold, so it never waits for a thread that has not begun.
struct ThreadExecutor::Loop {
  Loop(size_t count, const std::function<void(size_t)>* body) : count(count), body(body) {}

  void Run() {
    for (size_t i = next.fetch_add(1); i < count; i = next.fetch_add(1)) {
      (*body)(i);
      if (done.fetch_add(1) + 1 < count) continue;
      // Whoever does not see `done` yet waits by the time the lock is taken.
      { MutexLock lock(&mu); }
      finished.NotifyAll();
    }
  }
  void Wait() {
    const auto until = std::chrono::steady_clock::now() + kLookout;
    while (done.load() < count && std::chrono::steady_clock::now() < until) {
    }
    MutexLock lock(&mu);
    while (done.load() < count) finished.Wait(&mu);
  }

  const size_t count;
  // Used only while an index is held, and the caller's body lives until all indices are done.
  const std::function<void(size_t)>* const body;
  std::atomic<size_t> next{0};
  std::atomic<size_t> done{0};
  Mutex mu;
  CondVar finished;
};

ThreadExecutor::ThreadExecutor(size_t num_threads, size_t max_queued, const Clock* clock,
                               std::chrono::microseconds spin)
    : num_threads_(num_threads), max_queued_(max_queued), clock_(clock), spin_(spin) {
  for (size_t i = 0; i < num_threads; ++i) threads_.emplace_back([this] { Work(); });
}

ThreadExecutor::~ThreadExecutor() { Stop(); }

// Threads are woken without the lock: one that runs at once would only wait for it.
absl::Status ThreadExecutor::Submit(Task task) {
  {
    MutexLock lock(&mu_);
    if (draining_) return absl::UnavailableError("the server is stopping");
    const size_t queued = queue_.size() + delayed_.size();
    if (queued >= max_queued_ && !task.bypass_bound) {
      return absl::ResourceExhaustedError(
          absl::StrCat("the request queue is full: ", queued, " of ", max_queued_));
    }
    if (task.delay.count() > 0) {
      delayed_.emplace(std::chrono::steady_clock::now() + task.delay, std::move(task));
    } else {
      queue_.push_back(std::move(task));
      if (spinning_) {
        arrived_.store(true, std::memory_order_release);
        return absl::OkStatus();
      }
    }
  }
  wake_.NotifyOne();
  return absl::OkStatus();
}

void ThreadExecutor::ParallelFor(size_t count, const std::function<void(size_t)>& body) {
  if (count == 0) return;
  if (count == 1) return body(0);
  auto loop = std::make_shared<Loop>(count, &body);
  {
    MutexLock lock(&mu_);
    loops_.push_back(loop);
    if (spinning_) arrived_.store(true, std::memory_order_release);
  }
  // As many as there are other indices; the rest would find nothing left.
  for (size_t i = 0; i < std::min(count - 1, num_threads_); ++i) wake_.NotifyOne();
  loop->Run();
  {
    MutexLock lock(&mu_);
    std::erase(loops_, loop);
  }
  loop->Wait();
}

void ThreadExecutor::Queue(TimePoint now) {
  while (!delayed_.empty() && (stopping_ || delayed_.begin()->first <= now)) {
    queue_.push_back(std::move(delayed_.begin()->second));
    delayed_.erase(delayed_.begin());
  }
}

void ThreadExecutor::Work() {
  while (true) {
    Task task;
    std::shared_ptr<Loop> loop;
    {
      MutexLock lock(&mu_);
      Queue(std::chrono::steady_clock::now());
      if (queue_.empty() && loops_.empty()) Spin();
      while (!stopping_ && queue_.empty() && loops_.empty()) {
        if (delayed_.empty()) {
          wake_.Wait(&mu_);
        } else {
          wake_.WaitUntil(&mu_, delayed_.begin()->first);
        }
        Queue(std::chrono::steady_clock::now());
      }
      // Others may wait for no particular time, while this one's task takes long.
      if (!delayed_.empty()) wake_.NotifyOne();
      // A loop under way first: somebody waits for it, and the queue's order is kept.
      if (!loops_.empty()) {
        loop = loops_.front();
      } else if (!queue_.empty()) {
        task = std::move(queue_.front());
        queue_.pop_front();
        ++running_;
      } else {
        return;  // stopping, and nothing is left to run or drop
      }
    }
    if (loop != nullptr) {
      loop->Run();
      MutexLock lock(&mu_);
      std::erase(loops_, loop);
      continue;
    }
    RunOrDrop(std::move(task));
    MutexLock lock(&mu_);
    if (--running_ == 0 && queue_.empty() && delayed_.empty()) idle_.NotifyAll();
  }
}

void ThreadExecutor::Spin() {
  if (spin_.count() == 0 || spinning_ || stopping_ || !delayed_.empty()) return;
  spinning_ = true;
  arrived_.store(false, std::memory_order_relaxed);
  mu_.Unlock();
  const auto until = std::chrono::steady_clock::now() + spin_;
  while (!arrived_.load(std::memory_order_acquire) && std::chrono::steady_clock::now() < until) {
    std::this_thread::yield();
  }
  mu_.Lock();
  spinning_ = false;
  // More may have come than this thread takes.
  for (size_t i = 1; i < queue_.size(); ++i) wake_.NotifyOne();
}

void ThreadExecutor::RunOrDrop(Task task) {
  absl::Status why;
  {
    MutexLock lock(&mu_);
    if (stopping_) why = absl::UnavailableError("the server is stopping");
  }
  if (why.ok() && task.cancelled && task.cancelled()) why = absl::CancelledError("cancelled");
  if (why.ok() && clock_->Now() >= task.deadline) {
    why = absl::DeadlineExceededError("the deadline passed before the request began to run");
  }
  if (why.ok()) return task.run();
  {
    MutexLock lock(&mu_);
    ++dropped_total_;
  }
  task.drop(why);
}

void ThreadExecutor::RunEvery(std::chrono::milliseconds interval, std::function<void()> body) {
  threads_.emplace_back([this, interval, body = std::move(body)] {
    while (true) {
      {
        MutexLock lock(&mu_);
        const TimePoint until = std::chrono::steady_clock::now() + interval;
        while (!stopping_ && periodic_wake_.WaitUntil(&mu_, until)) {
        }
        if (stopping_) return;
      }
      body();
    }
  });
}

bool ThreadExecutor::Drain(std::chrono::milliseconds timeout) {
  const TimePoint until = std::chrono::steady_clock::now() + timeout;
  MutexLock lock(&mu_);
  draining_ = true;
  while (running_ > 0 || !queue_.empty() || !delayed_.empty()) {
    if (!idle_.WaitUntil(&mu_, until)) {
      return running_ == 0 && queue_.empty() && delayed_.empty();
    }
  }
  return true;
}

void ThreadExecutor::Stop() {
  {
    MutexLock lock(&mu_);
    draining_ = stopping_ = true;
    wake_.NotifyAll();
    periodic_wake_.NotifyAll();
  }
  for (std::thread& thread : threads_) thread.join();
  threads_.clear();
}

ThreadExecutor::Stats ThreadExecutor::GetStats() const {
  MutexLock lock(&mu_);
  return {.queued = queue_.size() + delayed_.size(),
          .running = running_,
          .dropped_total = dropped_total_};
}

}  // namespace sketchkv
