#include "service/pool/block.h"

#include <gtest/gtest.h>

#include <vector>

#include "tests/testing/status_matchers.h"

namespace sketchkv {
namespace {

TEST(BlockHashTest, TakesSixteenToThirtyTwoBytesAndNamesAnyOtherSize) {
  const std::vector<uint8_t> bytes(40, 0xab);
  for (const size_t size : {16, 20, 32}) {
    SKETCHKV_ASSERT_OK_AND_ASSIGN(const BlockHash hash,
                                  BlockHash::FromBytes(std::span(bytes).first(size)));
    EXPECT_EQ(hash.bytes().size(), size);
    std::string hex;
    for (size_t i = 0; i < size; ++i) hex += "ab";
    EXPECT_EQ(hash.ToHex(), hex);
  }
  for (const size_t size : {0, 15, 33}) {
    EXPECT_THAT(
        BlockHash::FromBytes(std::span(bytes).first(size)),
        StatusIs(absl::StatusCode::kInvalidArgument, {std::to_string(size) + " bytes", "16", "32"}));
  }
}

TEST(BlockHashTest, ZeroBytesAtTheEndMakeAnotherHash) {
  const std::vector<uint8_t> zeros(32, 0);
  EXPECT_NE(BlockHash::FromBytes(std::span(zeros).first(16)).value(),
            BlockHash::FromBytes(std::span(zeros).first(17)).value());
}

}  // namespace
}  // namespace sketchkv
