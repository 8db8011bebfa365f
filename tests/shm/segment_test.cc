#include "service/shm/segment.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "service/shm/segment_table.h"
#include "tests/testing/status_matchers.h"

namespace sketchkv {
namespace {

constexpr uint64_t kPage = 4096;

std::string Text(const SegmentToken& token) { return std::string(token.begin(), token.end()); }

TEST(SegmentTest, NobodyWithItsDescriptorCanShrinkGrowOrUnsealIt) {
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const auto segment, Segment::Create(4 * kPage));
  const int fd = dup(segment->fd());  // what a client holds
  EXPECT_EQ(ftruncate(fd, kPage), -1);
  EXPECT_EQ(errno, EPERM);
  EXPECT_EQ(ftruncate(fd, 8 * kPage), -1);
  EXPECT_EQ(errno, EPERM);
  EXPECT_EQ(fallocate(fd, 0, 0, 8 * kPage), -1);
  EXPECT_EQ(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE), -1);
  // A hole is all it can make: the server reads zeros, and does not fault.
  EXPECT_EQ(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4 * kPage), 0);
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const auto bytes, segment->View(0, 4 * kPage));
  for (const std::byte byte : bytes) ASSERT_EQ(byte, std::byte{0});
  close(fd);
}

TEST(SegmentTest, BytesOutsideAreRefusedWithBothNumbers) {
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const auto segment, Segment::Create(kPage));
  SKETCHKV_EXPECT_OK(segment->View(0, kPage));
  SKETCHKV_EXPECT_OK(segment->View(kPage, 0));
  EXPECT_THAT(segment->View(0, kPage + 1),
              StatusIs(absl::StatusCode::kInvalidArgument, {"4097", "4096"}));
  EXPECT_THAT(segment->View(1, kPage), StatusIs(absl::StatusCode::kInvalidArgument, {"1", "4096"}));
  EXPECT_THAT(segment->View(~uint64_t{0}, 2), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(segment->View(2, ~uint64_t{0}), StatusIs(absl::StatusCode::kInvalidArgument));
  const uint64_t number = 0x1122334455667788;
  std::memcpy(segment->View(kPage - 8, 8)->data(), &number, sizeof(number));
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const uint64_t loaded, segment->Load(kPage - 8));
  EXPECT_EQ(loaded, number);
  for (const uint64_t bad : {kPage, kPage - 4, uint64_t{1}, ~uint64_t{7}}) {
    EXPECT_THAT(segment->Load(bad),
                StatusIs(absl::StatusCode::kInvalidArgument, {"guard_offset", "4096"}));
  }
}

TEST(SegmentTableTest, SegmentsAreCappedAClientAndTogether) {
  SegmentTable table({.client_bytes = 4 * kPage, .total_bytes = 6 * kPage});
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const auto first, table.Add(100 * kPage));
  EXPECT_EQ(first.segment->size(), 4 * kPage) << "what one client may have";
  EXPECT_THAT(table.Add(3 * kPage), StatusIs(absl::StatusCode::kResourceExhausted,
                                             {std::to_string(3 * kPage), std::to_string(4 * kPage),
                                              std::to_string(6 * kPage)}));
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const auto second, table.Add(1));
  EXPECT_EQ(second.segment->size(), kPage);
  EXPECT_EQ(table.used_bytes(), 5 * kPage);
  EXPECT_NE(first.token, second.token);
}

TEST(SegmentTableTest, ASegmentCountsUntilTheLastRequestOverItEnds) {
  SegmentTable table({.client_bytes = 4 * kPage, .total_bytes = 4 * kPage});
  SegmentToken token;
  std::shared_ptr<Segment> request;
  {
    SKETCHKV_ASSERT_OK_AND_ASSIGN(const auto added, table.Add(4 * kPage));
    token = added.token;
    SKETCHKV_ASSERT_OK_AND_ASSIGN(request, table.Find(Text(token)));
  }
  table.Remove(token, /*client_is_gone=*/true);
  EXPECT_THAT(table.Find(Text(token)), StatusIs(absl::StatusCode::kUnavailable));
  EXPECT_EQ(table.used_bytes(), 4 * kPage);
  std::memset(request->View(0, 4 * kPage)->data(), 1, 4 * kPage);  // still mapped
  request = nullptr;
  EXPECT_EQ(table.used_bytes(), 0);
}

TEST(SegmentTableTest, TokensAreNotGuessed) {
  SegmentTable table({.client_bytes = kPage, .total_bytes = kPage});
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const auto added, table.Add(kPage));
  std::string token = Text(added.token);
  SKETCHKV_EXPECT_OK(table.Find(token));
  token[15] ^= 1;
  EXPECT_THAT(table.Find(token), StatusIs(absl::StatusCode::kUnavailable));
  EXPECT_THAT(table.Find("short"), StatusIs(absl::StatusCode::kInvalidArgument, {"5", "16"}));
}

}  // namespace
}  // namespace sketchkv
