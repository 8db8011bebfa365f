#include "service/config.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "service/memory_limit.h"
#include "tests/testing/status_matchers.h"

namespace sketchkv {
namespace {

TEST(ConfigTest, DefaultsAreValid) { SKETCHKV_EXPECT_OK(Config().Validate()); }

TEST(ConfigTest, WithoutTlsOnlyLoopbackUnlessToldOtherwise) {
  Config config;
  for (const char* open : {"0.0.0.0:7415", "[::]:7415", "10.0.0.1:80", "example.org:7415"}) {
    config.listen = open;
    EXPECT_THAT(config.Validate(),
                StatusIs(absl::StatusCode::kInvalidArgument, {open, "--insecure"}));
  }
  config.insecure = true;
  SKETCHKV_EXPECT_OK(config.Validate());
  config.insecure = false;
  for (const char* local : {"127.0.0.1:0", "localhost:7415", "[::1]:7415", "unix:/tmp/s"}) {
    config.listen = local;
    SKETCHKV_EXPECT_OK(config.Validate());
  }
}

TEST(ConfigTest, EachBadValueNamesItsFlag) {
  const auto expect = [](const char* flag, const std::function<void(Config*)>& spoil) {
    Config config;
    spoil(&config);
    EXPECT_THAT(config.Validate(), StatusIs(absl::StatusCode::kInvalidArgument, {flag}));
  };
  expect("--host-bytes is 5", [](Config* c) { c->host_bytes = 5; });
  expect("--inflight-bytes is 5", [](Config* c) { c->inflight_bytes = 5; });
  expect("--threads is 5000", [](Config* c) { c->threads = 5000; });
  expect("--log-level is loud", [](Config* c) { c->log_level = "loud"; });
  expect("--max-queued is 0", [](Config* c) { c->max_queued = 0; });
  expect("--max-timeout-ms is 0", [](Config* c) { c->max_timeout_ms = 0; });
}

// A file tree as Linux shows it.
class MemoryLimitTest : public testing::Test {
 protected:
  void SetUp() override {
    root_ = std::filesystem::path(testing::TempDir()) /
            (std::string("memory_limit_") +
             testing::UnitTest::GetInstance()->current_test_info()->name());
    std::filesystem::remove_all(root_);
    Write("proc/meminfo", "MemTotal:       16777216 kB\nMemFree: 1 kB\n");
  }
  void TearDown() override { std::filesystem::remove_all(root_); }
  void Write(const std::string& path, const std::string& text) {
    std::filesystem::create_directories((root_ / path).parent_path());
    std::ofstream(root_ / path) << text;
  }
  uint64_t Limit() { return MemoryLimitBytes(root_.string() + "/"); }
  std::filesystem::path root_;
};

TEST_F(MemoryLimitTest, WithoutCgroupItIsTheMachines) { EXPECT_EQ(Limit(), uint64_t{16} << 30); }

TEST_F(MemoryLimitTest, TheSmallestLimitOnTheWayUpInVersionTwo) {
  Write("proc/self/cgroup", "0::/kubepods/pod1/c1\n");
  Write("sys/fs/cgroup/kubepods/pod1/c1/memory.max", "max\n");
  Write("sys/fs/cgroup/kubepods/pod1/memory.max", "4294967296\n");
  Write("sys/fs/cgroup/kubepods/memory.max", "8589934592\n");
  EXPECT_EQ(Limit(), uint64_t{4} << 30);
}

TEST_F(MemoryLimitTest, InsideAContainerTheRootIsItsOwn) {
  Write("proc/self/cgroup", "0::/\n");
  Write("sys/fs/cgroup/memory.max", "1073741824\n");
  EXPECT_EQ(Limit(), uint64_t{1} << 30);
}

TEST_F(MemoryLimitTest, VersionOneHasItsOwnFile) {
  Write("proc/self/cgroup", "5:cpu,cpuacct:/x\n4:memory:/docker/abc\n");
  Write("sys/fs/cgroup/memory/docker/abc/memory.limit_in_bytes", "2147483648\n");
  EXPECT_EQ(Limit(), uint64_t{2} << 30);
}

}  // namespace
}  // namespace sketchkv
