#include <gtest/gtest.h>

#include <cstring>

#include "tests/kernels/codec_testing.h"
#include "tests/testing/status_matchers.h"

// Cells from outside: each kind of corruption is found and named. Offsets are those of the drawing
// in kernels/README.md for the shapes below.
namespace sketchkv::testing {
namespace {

constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;

struct Flip {
  size_t offset;
  std::vector<uint8_t> bytes;
  std::vector<std::string> parts;
};

// 40 tokens of a 48-token block.
class Cell {
 public:
  explicit Cell(const ProfileRequest& request, DType dtype = DType::kBf16)
      : layout_(Layout(64, 64, 48, dtype)),
        codec_(MakeCodec(layout_, Resolve(request, layout_), BestIsa())),
        bytes_(EncodeCell(codec_->cell(0), RandomRows(40, 64, dtype, 1),
                          RandomRows(40, 64, dtype, 2), 40)) {}

  [[nodiscard]] absl::Status Validate(uint32_t num_tokens = 40) const {
    return codec_->cell(0).Validate(bytes_, num_tokens);
  }

  void ExpectRefused(const Flip& flip) {
    const std::vector<std::byte> good = bytes_;
    ASSERT_LE(flip.offset + flip.bytes.size(), bytes_.size());
    std::memcpy(bytes_.data() + flip.offset, flip.bytes.data(), flip.bytes.size());
    EXPECT_THAT(Validate(), StatusIs(kInvalid, flip.parts)) << "at " << flip.offset;
    bytes_ = good;
    SKETCHKV_EXPECT_OK(Validate());
  }

  std::vector<std::byte>& bytes() { return bytes_; }

 private:
  KvLayout layout_;
  std::unique_ptr<BlockCodec> codec_;
  std::vector<std::byte> bytes_;
};

TEST(ValidateTest, FindsEachHeaderField) {
  Cell cell(Named("qjl"));
  const std::vector<Flip> flips = {
      {0, {0xD0}, {"tag", "208", "192"}},
      {0, {0xC1}, {"format version", "is 1", "0"}},
      {1, {0x11}, {"codecs", "17", "38"}},
      {2, {41, 0}, {"num_tokens", "41", "40"}},
      {4, {0xFF, 0x7F}, {"key exponent", "32767", "160"}},
      {6, {0x00, 0x80}, {"outlier exponent", "-32768", "-256"}},
      {8, {161, 0}, {"value exponent", "161", "160"}},
      {10, {0xFF, 0x01}, {"minimum exponent", "511", "160"}},
      {12, {1}, {"reserved", "is 1", "0"}},
      {15, {1}, {"reserved", "16777216", "0"}},
  };
  for (const Flip& flip : flips) cell.ExpectRefused(flip);
}

TEST(ValidateTest, FindsSizesAndTokenCounts) {
  Cell cell(Named("qjl"));
  EXPECT_THAT(cell.Validate(39), StatusIs(kInvalid, {"num_tokens", "40", "39"}));
  EXPECT_THAT(cell.Validate(0), StatusIs(kInvalid, {"num_tokens", "0", "1-48"}));
  EXPECT_THAT(cell.Validate(49), StatusIs(kInvalid, {"num_tokens", "49", "1-48"}));
  const size_t size = cell.bytes().size();
  cell.bytes().resize(size - 1);
  EXPECT_THAT(cell.Validate(),
              StatusIs(kInvalid, {std::to_string(size - 1), std::to_string(size)}));
}

TEST(ValidateTest, FindsWhatIsNotFiniteOrNotPadding) {
  // Header 16, scales 96, padding to 128; signs 3 tiles x 4 lines; codes 48 x 16; lines 3 x 2.
  Cell cell(Named("qjl"));
  constexpr size_t kScales = 16, kSigns = 128, kCodes = kSigns + 3 * 4 * 64;
  constexpr size_t kLines = kCodes + 48 * 16;
  ASSERT_EQ(cell.bytes().size(), kLines + 3 * 2 * 64);
  const std::vector<Flip> flips = {
      {kScales + 2 * 5, {0x00, 0x7C}, {"key scale 5", "31744"}},
      {kScales + 2 * 5, {0x00, 0x84}, {"key scale 5", "negative"}},
      {kScales + 2 * 40, {1}, {"key scales", "is 1"}},
      {kScales + 96, {1}, {"padding of key scales"}},
      {kSigns + 2 * 4 * 64 + 8 * 4 + 3, {0x80}, {"signs", "128"}},
      {kCodes + 40 * 16, {2}, {"value codes", "is 2"}},
      {kLines + 4 * 64 + 2 * 3, {0x01, 0xFC}, {"value scale", "finite"}},
      {kLines + 2 * 7, {0x00, 0x80 | 0x30}, {"value scale 7", "negative"}},
      {kLines + 32 + 2 * 3, {0x01, 0x7C}, {"value minimum 3", "finite"}},
      {kLines + 5 * 64 + 32 + 2 * 8, {1}, {"value scales and minima"}},
  };
  for (const Flip& flip : flips) cell.ExpectRefused(flip);
}

TEST(ValidateTest, FindsOutlierChannelsOutOfRangeOrOrder) {
  ProfileRequest residual;
  residual.num_outliers = 3;
  Cell cell(residual);
  cell.ExpectRefused({16 + 4, {64, 0}, {"outlier channel 2", "64", "below 64"}});
  cell.ExpectRefused({16 + 2, {0, 0}, {"outlier channel 1", "is 0", "above"}});
  cell.ExpectRefused({16 + 6, {0x00, 0xFC}, {"residual scale 0", "finite"}});
  // Scales end at 16 + 12 + 96 = 124: signs at 128, residuals behind three tiles of four lines.
  cell.ExpectRefused({128 + 3 * 4 * 64 + 2 * 48 + 8, {1}, {"residuals"}});

  // Two groups of 8 channels at 16, then two sets of scales.
  Cell paper(Named("qjl-paper"));
  paper.ExpectRefused({16 + 16 + 14, {64, 0}, {"outlier channel 7", "64"}});
  paper.ExpectRefused({16 + 32 + 96 + 2, {0x00, 0x7E}, {"outlier scale 1", "finite"}});
}

TEST(ValidateTest, ChannelsOfGroupsWithoutTokensAreZero) {
  const KvLayout layout = Layout(64, 64, 48);
  const auto codec = MakeCodec(layout, Resolve(Named("qjl-paper"), layout), BestIsa());
  auto cell = EncodeCell(codec->cell(0), RandomRows(20, 64, DType::kBf16, 1),
                         RandomRows(20, 64, DType::kBf16, 2), 20);
  SKETCHKV_EXPECT_OK(codec->cell(0).Validate(cell, 20));
  cell[16 + 16] = std::byte{3};
  EXPECT_THAT(codec->cell(0).Validate(cell, 20), StatusIs(kInvalid, {"outlier channels", "is 3"}));
}

TEST(ValidateTest, FindsRawRowsThatAreNotFiniteOrNotPadding) {
  Cell cell(Named("raw"));
  const size_t row = 128, keys = 64, values = keys + 48 * row;
  cell.ExpectRefused({16, {1}, {"header", "is 1"}});
  cell.ExpectRefused({keys + 7 * row + 2, {0xC0, 0x7F}, {"keys", "from 0 to 15"}});
  cell.ExpectRefused({keys + 40 * row, {1}, {"keys", "is 1"}});
  cell.ExpectRefused({values + 17 * row, {0x80, 0xFF}, {"values", "from 16 to 31"}});
  cell.ExpectRefused({values + 47 * row + 127, {9}, {"values", "is 9"}});
}

// Whatever passes is safe: a cell of random bytes under a good header never makes a reader touch
// memory outside it (seen by the sanitizer) and gives no error when it validates.
TEST(ValidateTest, RandomBytesAreRefusedOrSafe) {
  Random random(99);
  for (const NamedRequest& named : AllRequests()) {
    const KvLayout layout = Layout(24, 24, 40);
    const auto block = MakeCodec(layout, Resolve(named.request, layout), BestIsa());
    const CellCodec& codec = block->cell(0);
    const auto good = EncodeCell(codec, RandomRows(40, 24, DType::kBf16, 1),
                                 RandomRows(40, 24, DType::kBf16, 2), 40);
    const auto queries = codec.PrepareQueries(RandomQueries(3, 24, 3));
    int accepted = 0;
    for (int round = 0; round < 300; ++round) {
      auto cell = good;
      for (int i = 0; i < 3; ++i) {
        cell[random.Bits() % cell.size()] = static_cast<std::byte>(random.Bits());
      }
      if (!codec.Validate(cell, 40).ok()) continue;
      ++accepted;
      std::vector<std::byte> out(40 * 24 * 4);
      SKETCHKV_ASSERT_OK(
          codec.Decode(cell, 40, DType::kFp32, {out.data(), 96}, DType::kFp32, {out.data(), 96}));
      AttentionPartial partial = codec.NewPartial(3);
      codec.Attend(cell, 0, 40, *queries, {.softmax_scale = 1.0f}, &partial);
      for (float x : partial.sum) ASSERT_GE(x, 0.9f) << named.name;  // false for NaN too
    }
    EXPECT_GT(accepted, 0) << named.name;
    EXPECT_LT(accepted, 300) << named.name;
  }
}

}  // namespace
}  // namespace sketchkv::testing
