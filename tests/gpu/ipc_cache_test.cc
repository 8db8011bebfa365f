#include "service/gpu/ipc_cache.h"

#include <gtest/gtest.h>

#include <atomic>
#include <thread>
#include <vector>

#include "tests/testing/fake_clock.h"
#include "tests/testing/status_matchers.h"

namespace sketchkv::gpu {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

// Gives memory of its own, and knows what is open. A handle's first byte says which; 0 is unknown.
class FakeOpener final : public IpcOpener {
 public:
  absl::StatusOr<std::span<std::byte>> Open(const GpuIpcHandle& handle) override {
    ++opens;
    if (handle[0] == 0) return absl::InvalidArgumentError("unknown");
    EXPECT_FALSE(open[handle[0]].exchange(true)) << "open already";
    std::this_thread::sleep_for(milliseconds(2));
    return std::span(memory[handle[0]]);
  }
  void Close(std::span<std::byte> bytes) override {
    ++closes;
    for (size_t i = 0; i < memory.size(); ++i) {
      if (bytes.data() != memory[i].data()) continue;
      std::this_thread::sleep_for(milliseconds(2));
      EXPECT_TRUE(open[i].exchange(false)) << "closed twice";
    }
  }

  std::array<std::array<std::byte, 64>, 4> memory{};
  std::array<std::atomic<bool>, 4> open{};
  std::atomic<int> opens = 0;
  std::atomic<int> closes = 0;
};

GpuIpcHandle Handle(uint8_t which) { return {which}; }

struct IpcCacheTest : ::testing::Test {
  FakeOpener opener;
  FakeClock clock;
  IpcCache cache{&opener, &clock};
};

TEST_F(IpcCacheTest, AnAllocationIsOpenedOnceAndKeptAWhile) {
  for (int i = 0; i < 3; ++i) {
    const absl::StatusOr<GpuBytes> bytes = cache.Open(Handle(1));
    SKETCHKV_ASSERT_OK(bytes);
    EXPECT_EQ(bytes->bytes.data(), opener.memory[1].data());
    EXPECT_EQ(bytes->bytes.size(), 64u);
  }
  clock.Advance(IpcCache::kKeep - milliseconds(1));
  cache.CloseUnused();
  SKETCHKV_ASSERT_OK(cache.Open(Handle(1)));
  EXPECT_EQ(opener.opens, 1);
  clock.Advance(IpcCache::kKeep - milliseconds(1));
  cache.CloseUnused();
  EXPECT_EQ(opener.closes, 0) << "it was used in between";
  clock.Advance(milliseconds(1));
  cache.CloseUnused();
  EXPECT_EQ(opener.closes, 1);
  SKETCHKV_ASSERT_OK(cache.Open(Handle(1)));
  EXPECT_EQ(opener.opens, 2);
}

TEST_F(IpcCacheTest, WhatIsUsedStaysOpenHoweverLong) {
  absl::StatusOr<GpuBytes> held = cache.Open(Handle(1));
  SKETCHKV_ASSERT_OK(held);
  SKETCHKV_ASSERT_OK(cache.Open(Handle(2)));
  clock.Advance(seconds(3600));
  cache.CloseUnused();
  EXPECT_TRUE(opener.open[1]);
  EXPECT_FALSE(opener.open[2]);
  held->owner = nullptr;
  cache.CloseUnused();
  EXPECT_TRUE(opener.open[1]) << "its last user has only just gone";
  clock.Advance(IpcCache::kKeep);
  cache.CloseUnused();
  EXPECT_FALSE(opener.open[1]);
}

TEST_F(IpcCacheTest, ErrorsAreNotKept) {
  EXPECT_THAT(cache.Open(Handle(0)), StatusIs(absl::StatusCode::kInvalidArgument, {"unknown"}));
  EXPECT_THAT(cache.Open(Handle(0)), StatusIs(absl::StatusCode::kInvalidArgument, {"unknown"}));
  EXPECT_EQ(opener.opens, 2);
  clock.Advance(seconds(3600));
  cache.CloseUnused();
  EXPECT_EQ(opener.closes, 0);
}

TEST(IpcCacheEndTest, ClosesWhatIsStillOpen) {
  FakeOpener opener;
  FakeClock clock;
  {
    IpcCache cache(&opener, &clock);
    SKETCHKV_ASSERT_OK(cache.Open(Handle(1)));
  }
  EXPECT_FALSE(opener.open[1]);
}

// The opener fails the test when an allocation is open twice, or closed while it is used.
TEST_F(IpcCacheTest, ManyThreadsShareOneMapping) {
  std::atomic<bool> stop = false;
  std::vector<std::thread> threads;
  for (uint8_t t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 200; ++i) {
        const uint8_t which = 1 + (t + i) % 3;
        const absl::StatusOr<GpuBytes> bytes = cache.Open(Handle(which));
        SKETCHKV_ASSERT_OK(bytes);
        EXPECT_TRUE(opener.open[which]);
        EXPECT_EQ(bytes->bytes.data(), opener.memory[which].data());
      }
    });
  }
  std::thread closer([&] {
    while (!stop) {
      clock.Advance(IpcCache::kKeep);
      cache.CloseUnused();
    }
  });
  for (std::thread& thread : threads) thread.join();
  stop = true;
  closer.join();
  clock.Advance(IpcCache::kKeep);  // on a busy machine the closer may have come too late for all
  cache.CloseUnused();
  EXPECT_GT(opener.closes, 0);
}

}  // namespace
}  // namespace sketchkv::gpu
