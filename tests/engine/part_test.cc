#include "service/engine/part.h"

#include <gtest/gtest.h>

#include "tests/testing/status_matchers.h"

namespace sketchkv {
namespace {

KvLayout SmallLayout() {
  return {.num_layers = 3, .num_kv_heads = 4, .head_dim = 24, .value_dim = 16, .block_tokens = 8};
}

TEST(PartTest, ZeroCountsMeanAllThatIsLeft) {
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const CellRange all, ResolveRange({}, SmallLayout()));
  EXPECT_EQ(all, (CellRange{0, 3, 0, 4}));
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const CellRange rest,
                                ResolveRange({.layer_begin = 2, .head_begin = 1}, SmallLayout()));
  EXPECT_EQ(rest, (CellRange{2, 1, 1, 3}));
}

TEST(PartTest, RangesOutsideTheModelAreRefusedWithBothNumbers) {
  EXPECT_THAT(ResolveRange({.layer_begin = 3}, SmallLayout()),
              StatusIs(absl::StatusCode::kInvalidArgument, {"layer_begin is 3", "3"}));
  EXPECT_THAT(
      ResolveRange({.layer_begin = 1, .layer_count = 3}, SmallLayout()),
      StatusIs(absl::StatusCode::kInvalidArgument, {"layer_begin + layer_count is 4", "3"}));
  EXPECT_THAT(
      ResolveRange({.head_begin = 1, .head_count = UINT32_MAX}, SmallLayout()),
      StatusIs(absl::StatusCode::kInvalidArgument, {"head_begin + head_count is 4294967296"}));
}

// Every element of a payload is one (layer, K or V, token, head, channel): the views of all heads
// together must touch each row exactly once, in both orders.
TEST(PartTest, RowsOfAllHeadsTileThePayload) {
  const KvLayout layout = SmallLayout();
  const CellRange range{.layer_begin = 1, .layer_count = 2, .head_begin = 1, .head_count = 3};
  for (const RawOrder order : {RawOrder::kNhd, RawOrder::kHnd}) {
    const RawPartFormat format(layout, range, 5, order);
    ASSERT_EQ(format.total_bytes(), 2 * 3 * 5 * (24 + 16) * 2);
    std::vector<std::byte> payload(format.total_bytes());
    std::vector<int> touched(payload.size(), 0);
    for (uint32_t layer = 1; layer < 3; ++layer) {
      for (uint32_t head = 1; head < 4; ++head) {
        const RowsView views[2] = {format.Keys(payload.data(), layer, head),
                                   format.Values(payload.data(), layer, head)};
        const size_t row_bytes[2] = {24 * 2, 16 * 2};
        for (int kv = 0; kv < 2; ++kv) {
          for (uint32_t t = 0; t < 5; ++t) {
            const size_t begin = views[kv].data - payload.data() + t * views[kv].stride_bytes;
            EXPECT_TRUE(format.IsRowBoundary(begin));
            for (size_t b = 0; b < row_bytes[kv]; ++b) ++touched[begin + b];
          }
        }
      }
    }
    for (const int count : touched) ASSERT_EQ(count, 1);
    EXPECT_FALSE(format.IsRowBoundary(2));
    EXPECT_FALSE(format.IsRowBoundary(format.total_bytes() - 2));
    EXPECT_EQ(format.FloorToRow(49), 48);
    EXPECT_EQ(format.FloorToRow(format.total_bytes() - 1), format.total_bytes() - 32);
  }
  const RawPartFormat nhd(layout, range, 5, RawOrder::kNhd), hnd(layout, range, 5, RawOrder::kHnd);
  const std::byte* base = nullptr;
  EXPECT_EQ(nhd.Keys(base, 1, 2).data - base, 48);      // next head of the same token
  EXPECT_EQ(hnd.Keys(base, 1, 2).data - base, 5 * 48);  // after all tokens of the head before
}

TEST(PartTest, EncodedPartsOfAnotherModelOrFormatAreRefused) {
  ModelRegistry registry(Isa::kScalar);
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const auto model, registry.Register(0, "m", SmallLayout(), {}));
  PartLayout part{.num_tokens = 8,
                  .fingerprint = std::string(model->fingerprint.begin(), model->fingerprint.end()),
                  .format_version = kFormatVersion};
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const uint64_t bytes, ExpectedPayloadBytes(*model, part, true));
  EXPECT_EQ(bytes, model->codec->slot_bytes());
  part.format_version = kFormatVersion + 1;
  EXPECT_THAT(ExpectedPayloadBytes(*model, part, true),
              StatusIs(absl::StatusCode::kInvalidArgument, {"format_version is"}));
  part.format_version = kFormatVersion;
  part.fingerprint[0] ^= 1;
  EXPECT_THAT(ExpectedPayloadBytes(*model, part, true),
              StatusIs(absl::StatusCode::kInvalidArgument, {"fingerprint is"}));
  part.num_tokens = 9;
  EXPECT_THAT(ExpectedPayloadBytes(*model, part, true),
              StatusIs(absl::StatusCode::kInvalidArgument, {"num_tokens is 9", "8"}));
  part.num_tokens = 0;
  EXPECT_THAT(ExpectedPayloadBytes(*model, part, false),
              StatusIs(absl::StatusCode::kInvalidArgument, {"num_tokens is 0"}));
}

TEST(PartTest, EncodedCellsLieInLayerThenHeadOrder) {
  ModelRegistry registry(Isa::kScalar);
  LayerProfileRequest raw{.profile = {.name = "raw"}, .layer_begin = 0, .layer_count = 1};
  LayerProfileRequest rest{.profile = {.name = "qjl"}, .layer_begin = 1};
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const auto model,
                                registry.Register(0, "m", SmallLayout(), {raw, rest}));
  const CellRange range{.layer_begin = 0, .layer_count = 3, .head_begin = 2, .head_count = 2};
  uint64_t offset = 0;
  for (uint32_t layer = 0; layer < 3; ++layer) {
    for (uint32_t head = 2; head < 4; ++head) {
      EXPECT_EQ(EncodedCellOffset(*model->codec, range, layer, head), offset);
      offset += model->codec->cell_bytes(layer);
    }
  }
  EXPECT_EQ(EncodedPartBytes(*model->codec, range), offset);
}

}  // namespace
}  // namespace sketchkv
