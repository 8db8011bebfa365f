#include <cmath>
#include <cstring>
#include <limits>
#include <random>

#include "absl/strings/escaping.h"
#include "client/cpp/src/part.h"
#include "sketchkv/client.h"
#include "tests/testing/status_matchers.h"

namespace sketchkv {
namespace {

constexpr float kNone = -std::numeric_limits<float>::infinity();

TEST(MergeAttention, AgreesWithDoublePrecision) {
  std::mt19937 random(7);
  std::normal_distribution<float> normal;
  constexpr size_t kRows = 50, kDim = 24;
  std::vector<float> out_a(kRows * kDim), out_b(kRows * kDim), lse_a(kRows), lse_b(kRows);
  for (float& x : out_a) x = normal(random);
  for (float& x : out_b) x = normal(random);
  for (float& x : lse_a) x = 40 * normal(random);
  for (size_t row = 0; row < kRows; ++row) lse_b[row] = lse_a[row] + 3 * normal(random);
  const std::vector<float> old_out = out_a, old_lse = lse_a;

  ASSERT_TRUE(MergeAttention(out_a, lse_a, out_b, lse_b, kDim));
  for (size_t row = 0; row < kRows; ++row) {
    const double a = old_lse[row], b = lse_b[row];
    const double lse = std::max(a, b) + std::log1p(std::exp(-std::fabs(a - b)));
    EXPECT_NEAR(lse_a[row], lse, 1e-5 * (1 + std::fabs(lse)));
    for (size_t i = row * kDim; i < (row + 1) * kDim; ++i) {
      const double want = old_out[i] * std::exp(a - lse) + out_b[i] * std::exp(b - lse);
      EXPECT_NEAR(out_a[i], want, 2e-6);
    }
  }
}

TEST(MergeAttention, SideWithoutTokensCountsForNothing) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  std::vector<float> out_a = {1, 2, nan, nan, nan, nan};
  std::vector<float> lse_a = {0.5f, kNone, kNone};
  const std::vector<float> out_b = {nan, nan, 3, 4, nan, nan};
  const std::vector<float> lse_b = {kNone, -2.5f, kNone};
  ASSERT_TRUE(MergeAttention(out_a, lse_a, out_b, lse_b, 2));
  EXPECT_EQ(out_a, (std::vector<float>{1, 2, 3, 4, 0, 0}));
  EXPECT_EQ(lse_a, (std::vector<float>{0.5f, -2.5f, kNone}));
}

TEST(MergeAttention, NanIsNotSwallowed) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  // The log-sum-exp of either side, beside one without tokens; an output that hardly counts.
  std::vector<float> out_a = {1, 2, 3, 4}, lse_a = {kNone, nan, kNone, 500};
  const std::vector<float> out_b = {1, 2, 3, nan}, lse_b = {nan, kNone, 1, -500};
  ASSERT_TRUE(MergeAttention(out_a, lse_a, out_b, lse_b, 1));
  for (const size_t row : {0, 1, 3}) EXPECT_TRUE(std::isnan(out_a[row])) << row;
  EXPECT_TRUE(std::isnan(lse_a[0]) && std::isnan(lse_a[1]));
  EXPECT_EQ(out_a[2], 3);
}

TEST(MergeAttention, RefusesSizesThatDisagreeAndChangesNothing) {
  std::vector<float> out = {1, 2, 3, 4}, lse = {1, 2};
  const std::vector<float> other_out = {5, 6, 7, 8}, other_lse = {1, 2}, short_lse = {1};
  EXPECT_FALSE(MergeAttention(out, lse, other_out, short_lse, 2));
  EXPECT_FALSE(MergeAttention(out, lse, std::span(other_out).first(2), other_lse, 2));
  EXPECT_FALSE(MergeAttention(out, lse, other_out, other_lse, 3));
  EXPECT_FALSE(MergeAttention(out, lse, other_out, other_lse, 0));
  EXPECT_EQ(out, (std::vector<float>{1, 2, 3, 4}));
  EXPECT_TRUE(MergeAttention({}, {}, {}, {}, 2));
}

std::string HexHash(const std::string& parent, const std::string& payload,
                    const std::string& salt) {
  return absl::BytesToHexString(ChainHash(parent, std::as_bytes(std::span(payload)), salt));
}

// Computed with Python's hashlib over struct.pack("<Q", len(x)) + x for parent, salt, payload.
TEST(ChainHash, IsLengthPrefixedSha256) {
  EXPECT_EQ(HexHash("", "", ""),
            "9d908ecfb6b256def8b49a7c504e6c889c4b0e41fe6ce3e01863dd7b61a20aa0");
  EXPECT_EQ(HexHash("", "abc", "model-a"),
            "2a2df920759dde761ac19597e33be8375580b54417e9dbd6d9ef93d4ccdac52b");
  EXPECT_EQ(HexHash(std::string(32, '\x11'), std::string("\x01\x00\x02", 3), ""),
            "8f0a9ebb670b31faea98720e3d9796e7dc1ad329c8d847609ee08550597ec2b8");
}

TEST(ChainHash, TellsSplitsApart) {
  EXPECT_NE(HexHash("", "bc", "a"), HexHash("", "c", "ab"));
  EXPECT_NE(HexHash("a", "c", "b"), HexHash("ab", "c", ""));
  EXPECT_NE(HexHash("a", "b", ""), HexHash("", "b", "a"));
  EXPECT_EQ(ChainHash("", {}).size(), 32u);
}

// Chunks follow one another, keep the limit and end where a row of keys or of values ends.
void CheckChunks(const client::RawShape& shape) {
  uint64_t begin = 0;
  while (begin < shape.total_bytes()) {
    const uint64_t end = client::RawChunkEnd(shape, begin);
    ASSERT_GT(end, begin);
    ASSERT_LE(end - begin, client::kMaxChunkBytes);
    const uint64_t within = end % shape.layer_bytes();
    const uint64_t key_bytes = shape.rows * shape.key_row_bytes;
    if (within < key_bytes || shape.value_row_bytes == 0) {
      ASSERT_EQ(within % shape.key_row_bytes, 0u);
    } else {
      ASSERT_EQ((within - key_bytes) % shape.value_row_bytes, 0u);
    }
    // No shorter than it must be: one row more would be too long.
    if (end < shape.total_bytes()) {
      const uint64_t longest_row = std::max(shape.key_row_bytes, shape.value_row_bytes);
      ASSERT_GT(end - begin + longest_row, client::kMaxChunkBytes);
    }
    begin = end;
  }
  EXPECT_EQ(begin, shape.total_bytes());
}

TEST(RawChunks, EndAtRows) {
  CheckChunks({1, 3, 32, 16});                            // one small chunk
  CheckChunks({32, 8 * 1024, 2304, 1000});                // rows that divide nothing
  CheckChunks({61, 1024, 1152, 0});                       // values are the keys' prefix
  CheckChunks({5, 1, 256, 256});                          // several layers a chunk
  CheckChunks({3, client::kMaxChunkBytes / 64, 64, 64});  // a chunk that ends with the keys
}

TEST(ResolveRange, NamesFieldAndBothNumbers) {
  CacheLayout layout;
  layout.num_layers = 4;
  layout.num_kv_heads = 2;
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const PartRange all, client::ResolveRange({1, 0, 0, 0}, layout));
  EXPECT_EQ(all.layer_count, 3u);
  EXPECT_EQ(all.head_count, 2u);
  EXPECT_THAT(client::ResolveRange({4, 0, 0, 0}, layout),
              StatusIs(absl::StatusCode::kInvalidArgument, {"layer_begin", "4"}));
  EXPECT_THAT(client::ResolveRange({0, 0, 1, UINT32_MAX}, layout),
              StatusIs(absl::StatusCode::kInvalidArgument, {"head_count", "4294967295", "2"}));
}

TEST(ClientOptions, AreChecked) {
  ClientOptions options;
  options.timeout = std::chrono::milliseconds(0);
  EXPECT_THAT(Client::Create(options),
              StatusIs(absl::StatusCode::kInvalidArgument, {"timeout", "0 ms"}));
  options = {};
  options.target = "";
  EXPECT_THAT(Client::Create(options), StatusIs(absl::StatusCode::kInvalidArgument, {"target"}));
}

}  // namespace
}  // namespace sketchkv
