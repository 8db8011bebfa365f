// How long callers wait for a lane, and what becomes of those who do not. All lanes are held by the
// test, so that nothing begins and no card is needed.

#include "service/gpu/attention_queue.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <future>
#include <memory>
#include <thread>
#include <vector>

#include "tests/testing/status_matchers.h"

namespace sketchkv::gpu {
namespace {

using std::chrono::milliseconds;

constexpr milliseconds kShort{30};
constexpr milliseconds kLong{60'000};  // no test waits so long

Patience Until(milliseconds from_now) {
  return {.deadline = std::chrono::steady_clock::now() + from_now};
}

std::unique_ptr<Lanes> NewLanes(size_t count) {
  return std::make_unique<Lanes>(std::vector<std::unique_ptr<Lane>>(count));
}

TEST(LanesTest, OneThatIsNotReturnedInTimeIsNotWaitedFor) {
  const auto lanes = NewLanes(1);
  const Lanes::Hold held = lanes->Take();
  EXPECT_THAT(lanes->Take(Until(kShort)).status(), StatusIs(absl::StatusCode::kDeadlineExceeded));
  std::atomic<bool> cancelled{false};
  auto waiting = std::async(std::launch::async, [&] {
    return lanes->Take({.cancelled = [&] { return cancelled.load(); }}).status();
  });
  EXPECT_EQ(waiting.wait_for(kShort), std::future_status::timeout);
  cancelled = true;
  EXPECT_THAT(waiting.get(), StatusIs(absl::StatusCode::kCancelled));
}

TEST(LanesTest, OneThatIsReturnedInTimeIsTaken) {
  const auto lanes = NewLanes(2);
  auto first = std::make_unique<Lanes::Hold>(lanes->Take());
  const Lanes::Hold second = lanes->Take();
  const size_t index = first->index();
  auto waiting = std::async(std::launch::async, [&] { return lanes->Take(Until(kLong))->index(); });
  EXPECT_EQ(waiting.wait_for(kShort), std::future_status::timeout);
  first = nullptr;
  EXPECT_EQ(waiting.get(), index);
}

class AttentionQueueTest : public ::testing::Test {
 protected:
  absl::Status Run(const Patience& patience) {
    const GpuAttention job{.query = {.head_count = 1,
                                     .num_query_tokens = 3,  // several pieces
                                     .queries_per_kv_head = 8}};
    return queue_.Run({&job, 1}, nullptr, Place::kHost, patience);
  }

  const std::unique_ptr<Lanes> lanes_ = NewLanes(1);
  AttentionQueue queue_{lanes_.get(), nullptr, std::chrono::microseconds(0)};
  const Lanes::Hold held_ = lanes_->Take();
};

TEST_F(AttentionQueueTest, ACallerLeavesAtItsDeadlineWithoutALane) {
  const auto begin = std::chrono::steady_clock::now();
  EXPECT_THAT(Run(Until(kShort)), StatusIs(absl::StatusCode::kDeadlineExceeded));
  EXPECT_GE(std::chrono::steady_clock::now() - begin, kShort);
  EXPECT_THAT(Run({.deadline = TimePoint::min()}), StatusIs(absl::StatusCode::kDeadlineExceeded));
  EXPECT_EQ(queue_.GetStats().attention_batches_total, 0);
}

TEST_F(AttentionQueueTest, EachCallerHasItsOwnDeadlineWhoeverWaitsForTheLane) {
  std::atomic<bool> cancelled{false};
  // This one waits for the lane, on behalf of all.
  auto first = std::async(std::launch::async, [&] {
    return Run({.deadline = std::chrono::steady_clock::now() + kLong,
                .cancelled = [&] { return cancelled.load(); }});
  });
  while (queue_.GetStats().attention_calls_total == 0) std::this_thread::yield();
  EXPECT_THAT(Run(Until(kShort)), StatusIs(absl::StatusCode::kDeadlineExceeded));
  EXPECT_EQ(first.wait_for(milliseconds(0)), std::future_status::timeout);
  // One that comes later waits for the lane when the first has gone.
  auto last = std::async(std::launch::async, [&] { return Run(Until(4 * kShort)); });
  while (queue_.GetStats().attention_calls_total < 3) std::this_thread::yield();
  cancelled = true;
  EXPECT_THAT(first.get(), StatusIs(absl::StatusCode::kCancelled));
  EXPECT_THAT(last.get(), StatusIs(absl::StatusCode::kDeadlineExceeded));
}

}  // namespace
}  // namespace sketchkv::gpu
