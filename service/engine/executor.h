#pragma once

#include <atomic>
#include <chrono>
#include <cstddef>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "kernels/base/clock.h"
#include "kernels/base/mutex.h"

namespace sketchkv {

// Work that runs once, or is dropped once before it begins.
struct Task {
  std::function<void()> run;
  // Called instead of `run`: DEADLINE_EXCEEDED when `deadline` has passed before it began,
  // CANCELLED when `cancelled` said so, UNAVAILABLE when the executor stops.
  std::function<void(absl::Status)> drop;
  TimePoint deadline = TimePoint::max();
  std::function<bool()> cancelled;  // may be empty
  bool bypass_bound = false;        // the server's own work, of which there is a bounded amount
  std::chrono::milliseconds delay{
      0};  // not before this has passed; what waits for it is bounded too
};

// Where requests run. Thread-safe.
class Executor {
 public:
  virtual ~Executor() = default;

  // RESOURCE_EXHAUSTED when the queue is full (naming its bound), UNAVAILABLE when stopping;
  // neither callback is called then.
  [[nodiscard]] virtual absl::Status Submit(Task task) = 0;

  // Calls body(i) for each i in [0, count), in any order and on any number of threads, the caller's
  // among them, and returns when all are done. The body must not submit and wait.
  virtual void ParallelFor(size_t count, const std::function<void(size_t)>& body) = 0;
};

// A bounded queue and its worker threads, the only threads of the service besides gRPC's own.
class ThreadExecutor final : public Executor {
 public:
  // `clock` outlives the executor. `spin`: for so long one idle thread looks for the next request
  // before it sleeps, since waking up may take longer than answering; it keeps a core busy.
  ThreadExecutor(size_t num_threads, size_t max_queued, const Clock* clock,
                 std::chrono::microseconds spin = std::chrono::microseconds(0));
  ~ThreadExecutor() override;  // as Stop

  [[nodiscard]] absl::Status Submit(Task task) override;
  void ParallelFor(size_t count, const std::function<void(size_t)>& body) override;

  // Calls `body` every `interval` on a thread of its own until Stop. Before the first Submit.
  void RunEvery(std::chrono::milliseconds interval, std::function<void()> body);

  // Refuses new work with UNAVAILABLE and waits until what there is has run, for at most `timeout`.
  // Returns whether it has.
  bool Drain(std::chrono::milliseconds timeout);

  // Drops what is queued, waits for what runs. Idempotent.
  void Stop();

  struct Stats {
    size_t queued = 0;
    size_t running = 0;
    uint64_t dropped_total = 0;  // late, cancelled or stopped
  };
  [[nodiscard]] Stats GetStats() const;

 private:
  struct Loop;
  void Work();
  void RunOrDrop(Task task);
  // Waits a moment for a task without sleeping; one thread at a time.
  void Spin() SKETCHKV_REQUIRES(mu_);
  // Moves what is due from delayed_ to queue_.
  void Queue(TimePoint now) SKETCHKV_REQUIRES(mu_);

  // Constant after construction.
  const size_t num_threads_;
  const size_t max_queued_;
  const Clock* const clock_;
  const std::chrono::microseconds spin_;

  std::atomic<bool> arrived_{false};  // something, while a thread spins
  mutable Mutex mu_;
  bool spinning_ SKETCHKV_GUARDED_BY(mu_) = false;
  CondVar wake_;
  std::deque<Task> queue_ SKETCHKV_GUARDED_BY(mu_);
  std::multimap<TimePoint, Task> delayed_ SKETCHKV_GUARDED_BY(mu_);   // by steady_clock
  std::deque<std::shared_ptr<Loop>> loops_ SKETCHKV_GUARDED_BY(mu_);  // open to more threads
  bool draining_ SKETCHKV_GUARDED_BY(mu_) = false;                    // no new work
  bool stopping_ SKETCHKV_GUARDED_BY(mu_) = false;                    // and no old
  size_t running_ SKETCHKV_GUARDED_BY(mu_) = 0;
  uint64_t dropped_total_ SKETCHKV_GUARDED_BY(mu_) = 0;
  CondVar periodic_wake_;
  CondVar idle_;

  std::vector<std::thread> threads_;  // joined by Stop only
};

}  // namespace sketchkv
