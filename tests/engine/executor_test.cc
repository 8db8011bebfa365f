#include "service/engine/executor.h"

#include <gtest/gtest.h>

#include <atomic>
#include <thread>
#include <vector>

#include "kernels/base/mutex.h"
#include "tests/testing/fake_clock.h"
#include "tests/testing/status_matchers.h"

namespace sketchkv {
namespace {

// Counts to one; tests wait on it instead of sleeping.
class Gate {
 public:
  void Open() {
    MutexLock lock(&mu_);
    open_ = true;
    cv_.NotifyAll();
  }
  void Wait() {
    MutexLock lock(&mu_);
    while (!open_) cv_.Wait(&mu_);
  }

 private:
  Mutex mu_;
  CondVar cv_;
  bool open_ = false;
};

Task MakeTask(std::function<void()> run, std::function<void(absl::Status)> drop) {
  return {.run = std::move(run), .drop = std::move(drop)};
}

void NeverDropped(absl::Status why) { ADD_FAILURE() << "dropped: " << why; }

TEST(ExecutorTest, RunsWhatWasSubmitted) {
  FakeClock clock;
  std::atomic<int> ran{0};
  Gate all;
  ThreadExecutor executor(3, 100, &clock);
  for (int i = 0; i < 100; ++i) {
    SKETCHKV_ASSERT_OK(executor.Submit(MakeTask(
        [&] {
          if (++ran == 100) all.Open();
        },
        NeverDropped)));
    if (executor.GetStats().queued > 90) std::this_thread::yield();
  }
  all.Wait();
  EXPECT_EQ(ran, 100);
}

TEST(ExecutorTest, SpinningThreadTakesWhatComesAndNothingIsForgotten) {
  FakeClock clock;
  ThreadExecutor executor(3, 100, &clock, /*spin=*/std::chrono::milliseconds(20));
  for (int round = 0; round < 50; ++round) {
    std::atomic<int> left{8};
    Gate all;
    // Tasks that come while one thread spins: it is told, and wakes the others for the rest.
    for (int i = 0; i < 4; ++i) {
      SKETCHKV_ASSERT_OK(executor.Submit(MakeTask(
          [&] {
            executor.ParallelFor(2, [&](size_t) {
              if (--left == 0) all.Open();
            });
          },
          NeverDropped)));
    }
    all.Wait();
    ASSERT_TRUE(executor.GetStats().queued == 0);
  }
}

TEST(ExecutorTest, TasksWaitingForEachOtherRunAtOnceWhileAThreadSpins) {
  FakeClock clock;
  ThreadExecutor executor(2, 100, &clock, /*spin=*/std::chrono::seconds(1));
  Gate first, second;
  std::this_thread::sleep_for(std::chrono::milliseconds(5));  // one thread spins now
  SKETCHKV_ASSERT_OK(executor.Submit(MakeTask(
      [&] {
        second.Wait();
        first.Open();
      },
      NeverDropped)));
  SKETCHKV_ASSERT_OK(executor.Submit(MakeTask([&] { second.Open(); }, NeverDropped)));
  first.Wait();
}

TEST(ExecutorTest, ADelayedTaskRunsAfterItsDelay) {
  FakeClock clock;
  ThreadExecutor executor(1, 2, &clock);
  Gate late;
  const auto begin = std::chrono::steady_clock::now();
  Task delayed = MakeTask([&] { late.Open(); }, NeverDropped);
  delayed.delay = std::chrono::milliseconds(30);
  SKETCHKV_ASSERT_OK(executor.Submit(std::move(delayed)));
  late.Wait();
  EXPECT_GE(std::chrono::steady_clock::now() - begin, std::chrono::milliseconds(30));
}

TEST(ExecutorTest, ADelayedTaskCountsHoldsNobodyUpAndIsDroppedAtTheEnd) {
  FakeClock clock;
  ThreadExecutor executor(1, 2, &clock);
  Gate soon, dropped;
  Task delayed = MakeTask([] { FAIL(); }, [&](const absl::Status&) { dropped.Open(); });
  delayed.delay = std::chrono::hours(1);
  SKETCHKV_ASSERT_OK(executor.Submit(std::move(delayed)));
  EXPECT_EQ(executor.GetStats().queued, 1) << "it counts while it waits";
  SKETCHKV_ASSERT_OK(executor.Submit(MakeTask([&] { soon.Open(); }, NeverDropped)));
  soon.Wait();
  EXPECT_EQ(executor.GetStats().queued, 1);
  executor.Stop();
  dropped.Wait();
}

TEST(ExecutorTest, FullQueueIsRefusedWithItsBound) {
  FakeClock clock;
  Gate begun, go;
  ThreadExecutor executor(1, 2, &clock);
  SKETCHKV_ASSERT_OK(executor.Submit(MakeTask(
      [&] {
        begun.Open();
        go.Wait();
      },
      NeverDropped)));
  begun.Wait();
  SKETCHKV_ASSERT_OK(executor.Submit(MakeTask([] {}, NeverDropped)));
  SKETCHKV_ASSERT_OK(executor.Submit(MakeTask([] {}, NeverDropped)));
  EXPECT_THAT(executor.Submit(MakeTask([] { FAIL(); }, NeverDropped)),
              StatusIs(absl::StatusCode::kResourceExhausted, {"2 of 2"}));
  Task own = MakeTask([] {}, NeverDropped);
  own.bypass_bound = true;
  SKETCHKV_EXPECT_OK(executor.Submit(std::move(own)));
  Gate last;
  Task end = MakeTask([&] { last.Open(); }, NeverDropped);
  end.bypass_bound = true;
  SKETCHKV_EXPECT_OK(executor.Submit(std::move(end)));
  go.Open();
  last.Wait();
}

TEST(ExecutorTest, LateAndCancelledWorkIsDroppedBeforeItBegins) {
  FakeClock clock;
  Gate begun, go, late_dropped, cancelled_dropped;
  ThreadExecutor executor(1, 10, &clock);
  SKETCHKV_ASSERT_OK(executor.Submit(MakeTask(
      [&] {
        begun.Open();
        go.Wait();
      },
      NeverDropped)));
  begun.Wait();
  Task late = MakeTask([] { ADD_FAILURE() << "ran late"; },
                       [&](absl::Status why) {
                         EXPECT_THAT(why, StatusIs(absl::StatusCode::kDeadlineExceeded));
                         late_dropped.Open();
                       });
  late.deadline = clock.Now() + std::chrono::seconds(1);
  SKETCHKV_ASSERT_OK(executor.Submit(std::move(late)));
  std::atomic<bool> cancelled{false};
  Task unwanted = MakeTask([] { ADD_FAILURE() << "ran cancelled"; },
                           [&](absl::Status why) {
                             EXPECT_THAT(why, StatusIs(absl::StatusCode::kCancelled));
                             cancelled_dropped.Open();
                           });
  unwanted.cancelled = [&] { return cancelled.load(); };
  SKETCHKV_ASSERT_OK(executor.Submit(std::move(unwanted)));
  clock.Advance(std::chrono::seconds(2));
  cancelled = true;
  go.Open();
  late_dropped.Wait();
  cancelled_dropped.Wait();
  EXPECT_EQ(executor.GetStats().dropped_total, 2);
}

TEST(ExecutorTest, StopDropsWhatIsQueuedAndWaitsForWhatRuns) {
  FakeClock clock;
  Gate begun, go;
  std::atomic<bool> finished{false};
  std::atomic<int> dropped{0};
  ThreadExecutor executor(1, 10, &clock);
  SKETCHKV_ASSERT_OK(executor.Submit(MakeTask(
      [&] {
        begun.Open();
        go.Wait();
        finished = true;
      },
      NeverDropped)));
  begun.Wait();
  for (int i = 0; i < 3; ++i) {
    SKETCHKV_ASSERT_OK(
        executor.Submit(MakeTask([] { ADD_FAILURE(); },
                                 [&](absl::Status why) {
                                   EXPECT_THAT(why, StatusIs(absl::StatusCode::kUnavailable));
                                   ++dropped;
                                 })));
  }
  std::thread stopper([&] { executor.Stop(); });
  // Not OK may also mean a full queue: Stop has begun when the answer is UNAVAILABLE.
  while (!absl::IsUnavailable(executor.Submit(MakeTask([] {}, [](absl::Status) {})))) {
    std::this_thread::yield();
  }
  go.Open();
  stopper.join();
  EXPECT_TRUE(finished);
  EXPECT_GE(dropped, 3);
  EXPECT_THAT(executor.Submit(MakeTask([] {}, NeverDropped)),
              StatusIs(absl::StatusCode::kUnavailable));
}

TEST(ExecutorTest, DrainFinishesWhatHasBegunAndRefusesNewWork) {
  FakeClock clock;
  Gate begun, go;
  std::atomic<int> ran{0};
  ThreadExecutor executor(1, 10, &clock);
  SKETCHKV_ASSERT_OK(executor.Submit(MakeTask(
      [&] {
        begun.Open();
        go.Wait();
        ++ran;
      },
      NeverDropped)));
  SKETCHKV_ASSERT_OK(executor.Submit(MakeTask([&] { ++ran; }, NeverDropped)));
  begun.Wait();
  EXPECT_FALSE(executor.Drain(std::chrono::milliseconds(1)));
  EXPECT_THAT(executor.Submit(MakeTask([] {}, NeverDropped)),
              StatusIs(absl::StatusCode::kUnavailable));
  go.Open();
  EXPECT_TRUE(executor.Drain(std::chrono::seconds(60)));
  EXPECT_EQ(ran, 2);
}

TEST(ExecutorTest, ParallelForCallsEachIndexOnceAlsoFromSeveralTasksAtOnce) {
  FakeClock clock;
  constexpr size_t kTasks = 8, kCount = 500;
  std::vector<std::vector<std::atomic<int>>> calls(kTasks);
  for (auto& row : calls) row = std::vector<std::atomic<int>>(kCount);
  std::atomic<size_t> done{0};
  Gate all;
  ThreadExecutor executor(3, 100, &clock);
  for (size_t task = 0; task < kTasks; ++task) {
    SKETCHKV_ASSERT_OK(executor.Submit(MakeTask(
        [&, task] {
          executor.ParallelFor(kCount, [&](size_t i) { ++calls[task][i]; });
          for (size_t i = 0; i < kCount; ++i) EXPECT_EQ(calls[task][i], 1);
          if (++done == kTasks) all.Open();
        },
        NeverDropped)));
  }
  all.Wait();
}

TEST(ExecutorTest, ParallelForUsesIdleThreads) {
  FakeClock clock;
  for (const size_t threads : {1, 2, 3}) {
    ThreadExecutor executor(threads, 10, &clock);
    // All bodies wait for the last: with one thread too few they would never end. This thread is
    // one.
    std::atomic<size_t> begun{0};
    Gate all;
    executor.ParallelFor(threads + 1, [&](size_t) {
      if (++begun == threads + 1) all.Open();
      all.Wait();
    });
  }
}

TEST(ExecutorTest, RunEveryCallsUntilStop) {
  FakeClock clock;
  std::atomic<int> calls{0};
  Gate twice;
  ThreadExecutor executor(1, 10, &clock);
  executor.RunEvery(std::chrono::milliseconds(1), [&] {
    if (++calls == 2) twice.Open();
  });
  twice.Wait();
  executor.Stop();
  const int at_stop = calls;
  EXPECT_EQ(calls, at_stop);
}

}  // namespace
}  // namespace sketchkv
