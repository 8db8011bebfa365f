#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kernels/isa.h"
#include "tests/kernels/codec_testing.h"
#include "tests/testing/status_matchers.h"

namespace sketchkv::testing {
namespace {

constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;

TEST(KvLayoutTest, AcceptsItsBounds) {
  KvLayout layout = Layout(16, 576, 1);
  SKETCHKV_EXPECT_OK(layout.Validate());
  layout = Layout(576, 16, 1024);
  layout.num_layers = 256;
  layout.num_kv_heads = 256;
  SKETCHKV_EXPECT_OK(layout.Validate());
}

TEST(KvLayoutTest, NamesFieldValueAndBound) {
  struct Case {
    void (*edit)(KvLayout*);
    std::vector<std::string> parts;
  };
  const std::vector<Case> cases = {
      {[](KvLayout* l) { l->num_layers = 0; }, {"num_layers", "is 0", "1-256"}},
      {[](KvLayout* l) { l->num_layers = 257; }, {"num_layers", "257", "1-256"}},
      {[](KvLayout* l) { l->num_kv_heads = 300; }, {"num_kv_heads", "300", "1-256"}},
      {[](KvLayout* l) { l->head_dim = 8; }, {"head_dim", "is 8", "16-576"}},
      {[](KvLayout* l) { l->head_dim = 100; }, {"head_dim", "100", "steps of 8"}},
      {[](KvLayout* l) { l->value_dim = 584; }, {"value_dim", "584", "16-576"}},
      {[](KvLayout* l) { l->block_tokens = 1025; }, {"block_tokens", "1025", "1-1024"}},
      {[](KvLayout* l) { l->block_tokens = 0; }, {"block_tokens", "is 0", "1-1024"}},
      {[](KvLayout* l) { l->key_dtype = static_cast<DType>(9); }, {"key_dtype", "9", "1-5"}},
      {[](KvLayout* l) { l->key_scale = 2.0f; }, {"key_scale", "2", "must be 1", "bf16"}},
      {[](KvLayout* l) { l->value_dtype = DType::kFp8E4M3, l->value_scale = 0.0f; },
       {"value_scale", "is 0", "above 0"}},
      {[](KvLayout* l) { l->value_source = static_cast<ValueSource>(3); }, {"value_source", "3"}},
      {[](KvLayout* l) { l->value_source = ValueSource::kKeyPrefix, l->value_dim = 136; },
       {"value_dim", "136", "128"}},
      {[](KvLayout* l) {
         l->value_source = ValueSource::kKeyPrefix, l->value_dtype = DType::kFp16;
       },
       {"value_dtype", "fp16", "bf16"}},
  };
  for (const Case& c : cases) {
    KvLayout layout = Layout(128, 128, 64);
    c.edit(&layout);
    EXPECT_THAT(layout.Validate(), StatusIs(kInvalid, c.parts));
  }
}

TEST(DTypeTest, NamesGoBothWays) {
  for (DType dtype : {DType::kBf16, DType::kFp16, DType::kFp32, DType::kFp8E4M3, DType::kFp8E5M2}) {
    SKETCHKV_ASSERT_OK_AND_ASSIGN(DType parsed, ParseDType(DTypeName(dtype)));
    EXPECT_EQ(parsed, dtype);
  }
  EXPECT_THAT(ParseDType("int8"), StatusIs(kInvalid, {"int8", "fp8_e5m2"}));
}

TEST(ProfileTest, QjlDefaults) {
  const CodecProfile p = Resolve(Named("qjl"), Layout(80, 80, 64));
  EXPECT_EQ(p.name, "qjl");
  EXPECT_EQ(p.key_codec, KeyCodec::kSketch);
  EXPECT_EQ(p.projection, Projection::kHadamard);
  EXPECT_EQ(p.scale_rule, ScaleRule::kExact);
  EXPECT_EQ(p.sign_bits, 160u);
  EXPECT_EQ(p.outlier_method, OutlierMethod::kNone);
  EXPECT_EQ(p.value_bits, 2u);
  EXPECT_EQ(p.value_group_size, 32u);
  ProfileRequest odd_bits = Named("qjl");
  odd_bits.sign_bits = 129;
  EXPECT_EQ(Resolve(odd_bits, Layout(80, 80, 64)).sign_bits, 160u) << "whole words";
}

TEST(ProfileTest, TheDefaultIsThreePlanesWithRotatedValues) {
  const CodecProfile p = Resolve({}, Layout(80, 72, 64));
  EXPECT_EQ(p.name, "qjl3p");
  EXPECT_EQ(p.key_codec, KeyCodec::kCodes);
  EXPECT_EQ(p.projection, Projection::kHadamard);
  EXPECT_EQ(p.scale_rule, ScaleRule::kExact);
  EXPECT_EQ(p.centering, Centering::kNone);
  EXPECT_EQ(p.code_bits, 3u);
  EXPECT_EQ(p.key_row_bits, 256u) << "240 bits in whole words";
  EXPECT_EQ(p.value_codec, ValueCodec::kRotated);
  EXPECT_EQ(p.value_bits, 2u);
  EXPECT_FALSE(p.uses_tables());
  EXPECT_EQ(Resolve(Named("qjl2p"), Layout(80, 72, 64)).key_row_bits, 160u);
  EXPECT_EQ(Resolve(Named("qjl4p"), Layout(80, 72, 64)).key_row_bits, 320u);
}

TEST(ProfileTest, KltTakesItsBitsFromTheTables) {
  const KvLayout layout = Layout(128, 64, 64);
  EXPECT_THAT(ResolveProfile(Named("klt"), layout, 0), StatusIs(kInvalid, {"klt", "tables"}));
  const auto tables = RandomTables(layout);
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const CodecProfile p,
                                ResolveProfile(Named("klt"), layout, 0, tables.get()));
  EXPECT_EQ(p.key_row_bits, 32u * (4 + 3 + 2) + 32u) << "112 rows: 4, 3, 2 and half a word of 1";
  EXPECT_EQ(p.value_row_bits, 32u * (4 + 2 + 1)) << "56 rows: 32 of 4 bits, 24 of 3";
  EXPECT_TRUE(p.uses_tables());
  EXPECT_THAT(ResolveProfile(Named("klt"), Layout(96, 64, 64), 0, tables.get()),
              StatusIs(kInvalid, {"head_dim", "128", "96"}));
  EXPECT_THAT(BlockCodec::Create(layout, {p}, Isa::kScalar), StatusIs(kInvalid, {"klt", "tables"}));
}

TEST(ProfileTest, PaperGivesEarlyLayersTwiceTheBits) {
  KvLayout layout = Layout(128, 128, 64);
  layout.num_layers = 32;
  const ProfileRequest paper = Named("qjl-paper");
  const CodecProfile early = Resolve(paper, layout, 14);
  EXPECT_EQ(early.sign_bits, 512u);
  EXPECT_EQ(early.outlier_sign_bits, 128u);
  const CodecProfile late = Resolve(paper, layout, 15);
  EXPECT_EQ(late.sign_bits, 256u);
  EXPECT_EQ(late.outlier_sign_bits, 256u);
  EXPECT_EQ(late.num_outliers, 8u);
  EXPECT_EQ(late.projection, Projection::kOrthogonal);
  EXPECT_EQ(late.scale_rule, ScaleRule::kNorm);
  layout.num_layers = 4;  // 1.875 layers, rounded to 2
  EXPECT_EQ(Resolve(paper, layout, 1).sign_bits, 512u);
  EXPECT_EQ(Resolve(paper, layout, 2).sign_bits, 256u);
}

TEST(ProfileTest, RefusesKnobsOutOfBoundOrOutOfPlace) {
  struct Case {
    const char* profile;
    void (*edit)(ProfileRequest*);
    std::vector<std::string> parts;
  };
  const std::vector<Case> cases = {
      {"zip", [](ProfileRequest*) {}, {"zip", "raw, qjl, qjl-paper, qjl2p, qjl3p, qjl4p, klt"}},
      {"qjl", [](ProfileRequest* r) { r->sign_bits = 100; }, {"sign_bits", "100", "128"}},
      {"qjl", [](ProfileRequest* r) { r->sign_bits = 0xFFFFFFFF; }, {"sign_bits", "4294967295"}},
      {"qjl", [](ProfileRequest* r) { r->num_outliers = 17; }, {"num_outliers", "17", "16"}},
      {"qjl", [](ProfileRequest* r) { r->value_bits = 3; }, {"value_bits", "3", "2, 4 or 8"}},
      {"qjl", [](ProfileRequest* r) { r->value_group_size = 24; }, {"value_group_size", "24"}},
      {"qjl", [](ProfileRequest* r) { r->outlier_sign_bits = 64; }, {"outlier_sign_bits", "unset"}},
      {"qjl",
       [](ProfileRequest* r) { r->projection = static_cast<Projection>(7); },
       {"projection", "7"}},
      {"qjl",
       [](ProfileRequest* r) { r->value_bits = 16, r->value_group_size = 32; },
       {"value_group_size", "32"}},
      {"qjl-paper",
       [](ProfileRequest* r) { r->outlier_sign_bits = 1024; },
       {"outlier_sign_bits", "1024", "256"}},
      {"qjl",
       [](ProfileRequest* r) { r->scale_rule = ScaleRule::kLeastSquares; },
       {"scale_rule", "3", "1 or 2"}},
      {"qjl3p", [](ProfileRequest* r) { r->sign_bits = 256; }, {"sign_bits", "256", "unset"}},
      {"qjl3p", [](ProfileRequest* r) { r->value_bits = 8; }, {"value_bits", "8", "2 to 4"}},
      {"qjl3p",
       [](ProfileRequest* r) { r->projection = Projection::kGaussian; },
       {"projection", "3", "orthogonal"}},
      {"qjl3p",
       [](ProfileRequest* r) { r->outlier_source = OutlierSource::kTable; },
       {"outlier_source", "unset"}},
      {"qjl3p",
       [](ProfileRequest* r) { r->centering = static_cast<Centering>(4); },
       {"centering", "4"}},
      {"qjl-paper",
       [](ProfileRequest* r) { r->centering = Centering::kTable; },
       {"centering", "unset"}},
      {"raw", [](ProfileRequest* r) { r->sign_bits = 256; }, {"sign_bits", "256", "raw"}},
      {"raw", [](ProfileRequest* r) { r->value_bits = 4; }, {"value_bits", "4", "16"}},
  };
  for (const Case& c : cases) {
    ProfileRequest request = Named(c.profile);
    c.edit(&request);
    EXPECT_THAT(ResolveProfile(request, Layout(128, 128, 64), 0), StatusIs(kInvalid, c.parts));
  }
  EXPECT_THAT(ResolveProfile({}, Layout(128, 128, 64), 1), StatusIs(kInvalid, {"layer", "1"}));
  ProfileRequest all_channels = Named("qjl");
  all_channels.num_outliers = 16;
  EXPECT_THAT(ResolveProfile(all_channels, Layout(16, 16, 64), 0),
              StatusIs(kInvalid, {"num_outliers", "16", "15"}));
}

TEST(BlockCodecTest, RefusesWhatDoesNotFit) {
  KvLayout layout = Layout(128, 128, 64);
  const CodecProfile qjl = Resolve(Named("qjl"), layout);
  EXPECT_THAT(BlockCodec::Create(layout, {qjl, qjl}, Isa::kScalar),
              StatusIs(kInvalid, {"profiles", "2", "1"}));
  CodecProfile wrong = qjl;
  wrong.sign_bits = 100;
  EXPECT_THAT(BlockCodec::Create(layout, {wrong}, Isa::kScalar),
              StatusIs(kInvalid, {"layer 0", "sign_bits", "100"}));
  wrong = qjl;
  wrong.version = 0;
  EXPECT_THAT(BlockCodec::Create(layout, {wrong}, Isa::kScalar), StatusIs(kInvalid, {"version"}));
  layout.value_source = ValueSource::kKeyPrefix;
  EXPECT_THAT(BlockCodec::Create(layout, {qjl}, Isa::kScalar),
              StatusIs(kInvalid, {"key_prefix", "raw"}));
}

TEST(BlockCodecTest, CellsFollowEachOtherAndBitsCountEveryByte) {
  KvLayout layout = Layout(128, 64, 32);
  layout.num_layers = 3;
  layout.num_kv_heads = 2;
  const CodecProfile qjl = Resolve(Named("qjl"), layout);
  const CodecProfile raw = Resolve(Named("raw"), layout);
  SKETCHKV_ASSERT_OK_AND_ASSIGN(auto codec,
                                BlockCodec::Create(layout, {raw, qjl, qjl}, Isa::kScalar));
  EXPECT_EQ(&codec->cell(1, 0), &codec->cell(2, 1)) << "equal profiles share a codec";
  size_t offset = 0;
  for (uint32_t layer = 0; layer < 3; ++layer) {
    for (uint32_t head = 0; head < 2; ++head) {
      EXPECT_EQ(codec->cell_offset(layer, head), offset);
      EXPECT_EQ(offset % 64, 0u);
      offset += codec->cell_bytes(layer);
    }
  }
  EXPECT_EQ(codec->slot_bytes(), offset);
  const BitsPerNumber bits = codec->bits_per_number();
  const double numbers = 3 * 2 * 32;
  EXPECT_DOUBLE_EQ(bits.keys * 128 * numbers + bits.values * 64 * numbers, 8.0 * offset);
  EXPECT_DOUBLE_EQ(bits.all * 192 * numbers, 8.0 * offset);
}

// Counted by hand from the drawing in kernels/README.md.
TEST(FormatTest, SizesOfKnownCells) {
  const KvLayout layout = Layout(128, 128, 64);
  const auto cell = [&](ProfileRequest request, const KvLayout& of) {
    return MakeCodec(of, Resolve(request, of), Isa::kScalar)->cell_bytes(0);
  };
  // Scales of 4 tiles; 8 words; 8 lines of 2-bit codes; 4 groups of ranges.
  EXPECT_EQ(cell(Named("qjl"), layout), 4u * (32 + 8 * 64 + 8 * 64 + 4 * 64));
  ProfileRequest residual = Named("qjl");
  residual.num_outliers = 4;  // 4 channels; 4 scales and 64 residuals a tile: 296, up to 320
  EXPECT_EQ(cell(residual, layout), 4u * (32 + 8 * 64 + 8 * 64 + 4 * 64) + 320);
  EXPECT_EQ(cell(Named("raw"), layout), 64u * 256 + 64 * 256);
  // A line of scales, 8, 12 or 16 lines of planes and 8 of values a tile: nothing else.
  EXPECT_EQ(cell(Named("qjl2p"), layout), 4u * (1 + 8 + 8) * 64);
  EXPECT_EQ(cell({}, layout), 4u * (1 + 12 + 8) * 64);
  EXPECT_EQ(cell(Named("qjl4p"), Layout(128, 128, 16)), (1u + 16 + 8) * 64);
  ProfileRequest three = Named("qjl3p");
  three.value_bits = 3;
  EXPECT_EQ(cell(three, Layout(128, 80, 16)), (1u + 12 + 5 + 3) * 64);
  KvLayout late = layout;
  late.num_layers = 2;
  const CodecProfile paper = Resolve(Named("qjl-paper"), late, 1);
  // Two scales a token, 16 words, two groups of 8 channels.
  EXPECT_EQ(MakeCodec(late, paper, Isa::kScalar)->cell_bytes(0),
            4u * (64 + 16 * 64 + 8 * 64 + 4 * 64) + 64);
  KvLayout mla = Layout(576, 512, 16);
  mla.value_source = ValueSource::kKeyPrefix;
  EXPECT_EQ(cell(Named("raw"), mla), 16u * 1152);
}

TEST(IsaTest, ChosenOnceForcibleRefusedIfLacking) {
  SKETCHKV_ASSERT_OK_AND_ASSIGN(Isa best, ChooseIsa("auto"));
  EXPECT_TRUE(IsaSupported(best));
  EXPECT_EQ(best, BestIsa());
  SKETCHKV_ASSERT_OK_AND_ASSIGN(Isa empty, ChooseIsa(""));
  EXPECT_EQ(empty, best);
  for (Isa isa : {Isa::kScalar, Isa::kAvx2, Isa::kAvx512, Isa::kAvx512Vnni, Isa::kNeon}) {
    if (IsaSupported(isa)) {
      SKETCHKV_ASSERT_OK_AND_ASSIGN(Isa forced, ChooseIsa(IsaName(isa)));
      EXPECT_EQ(forced, isa);
    } else {
      EXPECT_THAT(ChooseIsa(IsaName(isa)), StatusIs(absl::StatusCode::kFailedPrecondition));
    }
  }
  EXPECT_THAT(ChooseIsa("sse9"), StatusIs(kInvalid, {"sse9", "neon"}));
}

}  // namespace
}  // namespace sketchkv::testing
