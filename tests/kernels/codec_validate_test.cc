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
        bytes_(EncodeCell(codec_->cell(0, 0), RandomRows(40, 64, dtype, 1),
                          RandomRows(40, 64, dtype, 2), 40)) {}

  [[nodiscard]] absl::Status Validate(uint32_t num_tokens = 40) const {
    return codec_->cell(0, 0).Validate(bytes_, num_tokens);
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

TEST(ValidateTest, FindsSizesAndTokenCounts) {
  Cell cell(Named("qjl"));
  EXPECT_THAT(cell.Validate(39), StatusIs(kInvalid, {"padding of scales"}));
  EXPECT_THAT(cell.Validate(0), StatusIs(kInvalid, {"num_tokens", "0", "1-48"}));
  EXPECT_THAT(cell.Validate(49), StatusIs(kInvalid, {"num_tokens", "49", "1-48"}));
  const size_t size = cell.bytes().size();
  cell.bytes().resize(size - 1);
  EXPECT_THAT(cell.Validate(),
              StatusIs(kInvalid, {std::to_string(size - 1), std::to_string(size)}));
}

TEST(ValidateTest, FindsWhatIsNotFiniteOrNotPadding) {
  // Scales 3 tiles x 32, padding to 128; planes 3 tiles x 4 lines; values 3 x 4 lines; ranges 3
  // x 2.
  Cell cell(Named("qjl"));
  constexpr size_t kPlanes = 128, kValues = kPlanes + 3 * 4 * 64;
  constexpr size_t kRanges = kValues + 3 * 4 * 64;
  ASSERT_EQ(cell.bytes().size(), kRanges + 3 * 2 * 64);
  const std::vector<Flip> flips = {
      {2 * 5, {0x00, 0xFF}, {"scale 5", "65280", "65279"}},
      {2 * 40, {1}, {"padding of scales", "is 1"}},
      {96, {1}, {"padding of scales"}},
      {kPlanes + 2 * 4 * 64 + 8 * 4 + 3, {0x80}, {"planes", "128"}},
      // Tile 2 holds tokens 32-39, 4p + j with p below 2: bits 4 and 5 of a byte are of token 40
      // on.
      {kValues + 2 * 4 * 64 + 5 * 4, {0x10 | 0xF}, {"value codes", "is 16"}},
      {kRanges + 4 * 64 + 2 * 3, {0x01, 0xFF}, {"value scale", "65281"}},
      {kRanges + 5 * 64 + 32 + 2 * 8, {1}, {"value scales and zeros"}},
  };
  for (const Flip& flip : flips) cell.ExpectRefused(flip);
}

TEST(ValidateTest, FindsWhatIsWrongInTheFamily) {
  // One line of key and value scales a tile; a mean of 128 bytes; 3 x 6 lines of three planes.
  ProfileRequest request = Named("qjl3p");
  request.centering = Centering::kBlock;
  request.value_bits = 3;
  Cell cell(request);
  constexpr size_t kMean = 3 * 64, kPlanes = kMean + 128, kValues = kPlanes + 3 * 6 * 64;
  ASSERT_EQ(cell.bytes().size(), kValues + 3 * (4 + 2) * 64);
  const std::vector<Flip> flips = {
      {2 * 64 + 32 + 2 * 8, {1}, {"padding of scales"}},
      {kMean + 2 * 7, {0x80, 0x7F}, {"mean of channel 7", "32640"}},
      {kPlanes + (2 * 6 + 5) * 64 + 4 * 15, {1}, {"planes"}},
      {kValues + (2 * 6 + 3) * 64, {0x10 | 0xF}, {"value codes"}},
      {kValues + (2 * 6 + 5) * 64, {0x04}, {"value codes", "is 4"}},  // the line of high bits
  };
  for (const Flip& flip : flips) cell.ExpectRefused(flip);
}

// Bits between and behind the codes of tokens that are there stand for nothing either.
TEST(ValidateTest, FindsBitsOfNoCoordinate) {
  const KvLayout layout = Layout(24, 24, 16);
  ProfileRequest request = Named("qjl2p");
  request.value_bits = 3;
  const auto codec = MakeCodec(layout, Resolve(request, layout), BestIsa());
  const auto good = EncodeCell(codec->cell(0, 0), RandomRows(16, 24, DType::kBf16, 1),
                               RandomRows(16, 24, DType::kBf16, 2), 16);
  SKETCHKV_EXPECT_OK(codec->cell(0, 0).Validate(good, 16));
  // A line of scales; 48 bits in two words; two lines of 16 channels, one line of high bits.
  ASSERT_EQ(good.size(), 64u + 2 * 64 + 3 * 64);
  const auto expect = [&](size_t offset, uint8_t bits, const std::string& field) {
    auto cell = good;
    cell[offset] |= std::byte{bits};
    EXPECT_THAT(codec->cell(0, 0).Validate(cell, 16), StatusIs(kInvalid, {field})) << offset;
  };
  expect(64 + 64 + 4 * 3 + 2, 0x01, "planes");              // bit 48 of token 3
  expect(64 + 128 + 64 + 4 * 8, 0x80, "value codes");       // channel 24
  expect(64 + 128 + 128 + 4 * 9 + 1, 0x10, "value codes");  // channel 25's high bit
}

TEST(ValidateTest, FindsOutlierChannelsOutOfRangeOrOrder) {
  ProfileRequest residual = Named("qjl");
  residual.num_outliers = 3;
  Cell cell(residual);
  // Behind the planes: three channels, 3 x 3 scales, 3 x 3 x 16 residuals.
  constexpr size_t kChannels = 128 + 3 * 4 * 64;
  cell.ExpectRefused({kChannels + 4, {64, 0}, {"outlier channel 2", "64", "below 64"}});
  cell.ExpectRefused({kChannels + 2, {0, 0}, {"outlier channel 1", "is 0", "above"}});
  cell.ExpectRefused({kChannels + 6, {0x00, 0xFF}, {"residual scale 0", "65280"}});
  cell.ExpectRefused({kChannels + 6 + 18 + 2 * 48 + 8, {1}, {"residuals"}});
  cell.ExpectRefused({kChannels + 6 + 18 + 144, {1}, {"padding of keys"}});

  // Two scales a token; planes of 4 and 4 words; then two groups of 8 channels.
  Cell paper(Named("qjl-paper"));
  constexpr size_t kPaper = 192 + 3 * (4 + 4) * 64;
  paper.ExpectRefused({kPaper + 16 + 14, {64, 0}, {"outlier channel 7", "64"}});
  paper.ExpectRefused({32 + 2, {0x00, 0xFF}, {"scale 17", "65280"}});
}

TEST(ValidateTest, ChannelsOfGroupsWithoutTokensAreZero) {
  const KvLayout layout = Layout(64, 64, 48);
  const auto codec = MakeCodec(layout, Resolve(Named("qjl-paper"), layout), BestIsa());
  auto cell = EncodeCell(codec->cell(0, 0), RandomRows(20, 64, DType::kBf16, 1),
                         RandomRows(20, 64, DType::kBf16, 2), 20);
  SKETCHKV_EXPECT_OK(codec->cell(0, 0).Validate(cell, 20));
  cell[192 + 3 * (4 + 4) * 64 + 16] = std::byte{3};
  EXPECT_THAT(codec->cell(0, 0).Validate(cell, 20),
              StatusIs(kInvalid, {"outlier channels", "is 3"}));
}

TEST(ValidateTest, FindsRawRowsThatAreNotFiniteOrNotPadding) {
  Cell cell(Named("raw"));
  const size_t row = 128, values = 48 * row;
  cell.ExpectRefused({7 * row + 2, {0xC0, 0x7F}, {"keys", "from 0 to 15"}});
  cell.ExpectRefused({40 * row, {1}, {"keys", "is 1"}});
  cell.ExpectRefused({values + 17 * row, {0x80, 0xFF}, {"values", "from 16 to 31"}});
  cell.ExpectRefused({values + 47 * row + 127, {9}, {"values", "is 9"}});
}

// Whatever passes is safe: a cell of random bytes never makes a reader touch
// memory outside it (seen by the sanitizer) and gives no error when it validates.
TEST(ValidateTest, RandomBytesAreRefusedOrSafe) {
  Random random(99);
  for (const NamedRequest& named : AllRequests()) {
    const KvLayout layout = Layout(24, 24, 40);
    const auto block = MakeCodec(layout, Resolve(named.request, layout), BestIsa());
    const CellCodec& codec = block->cell(0, 0);
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
