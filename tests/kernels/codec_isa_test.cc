#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/cpu/kernel_table.h"
#include "kernels/format.h"
#include "tests/kernels/codec_testing.h"
#include "tests/testing/status_matchers.h"

// Every instruction set this CPU has, equal to the scalar kernels to the bit: encoded bytes,
// decoded rows, scores and attention.
namespace sketchkv::testing {
namespace {

// All a codec says about one cell.
struct Answers {
  std::vector<std::byte> cell;
  std::vector<std::byte> decoded;  // keys and values as fp32, bf16 and fp16, poison between rows
  std::vector<float> scores;
  std::vector<float> attention;  // outputs and log-sum-exps
};

struct Shape {
  uint32_t head_dim, value_dim, block_tokens, num_tokens;
  DType dtype = DType::kBf16;
};

void Decode(const CellCodec& codec, const Shape& shape, DType dtype, Answers* answers) {
  const size_t key_stride = shape.head_dim * DTypeBytes(dtype) + 5;
  const size_t value_stride = shape.value_dim * DTypeBytes(dtype) + 3;
  const size_t values_at = 1 + shape.num_tokens * key_stride;
  std::vector<std::byte> out(values_at + shape.num_tokens * value_stride, kPoison);
  SKETCHKV_ASSERT_OK(codec.Decode(answers->cell, shape.num_tokens, dtype,
                                  {out.data() + 1, key_stride}, dtype,
                                  {out.data() + values_at, value_stride}));
  for (uint32_t t = 0; t < shape.num_tokens; ++t) {
    ASSERT_EQ(out[1 + (t + 1) * key_stride - 1], kPoison) << "wrote behind key row " << t;
    ASSERT_EQ(out[values_at + (t + 1) * value_stride - 1], kPoison) << "behind value row " << t;
  }
  answers->decoded.insert(answers->decoded.end(), out.begin(), out.end());
}

Answers Ask(const CellCodec& codec, const Shape& shape, size_t misalignment) {
  const GuardedRows keys =
      RandomRows(shape.num_tokens, shape.head_dim, shape.dtype, 21, misalignment);
  const GuardedRows values =
      RandomRows(shape.num_tokens, shape.value_dim, shape.dtype, 22, misalignment);
  Answers answers;
  answers.cell = EncodeCell(codec, keys, values, shape.num_tokens);
  for (DType dtype : {DType::kFp32, DType::kBf16, DType::kFp16}) {
    Decode(codec, shape, dtype, &answers);
  }
  constexpr uint32_t kQueries = 7;  // a tile of four and one of three
  const auto queries = codec.PrepareQueries(RandomQueries(kQueries, shape.head_dim, 23));
  const uint32_t begin = shape.num_tokens / 5;
  const uint32_t end = shape.num_tokens - shape.num_tokens / 7;
  const size_t stride = shape.num_tokens + 3;
  const float poison = std::bit_cast<float>(0xA5A5A5A5u);
  answers.scores.assign(kQueries * stride, poison);
  codec.Score(answers.cell, begin, end, *queries, answers.scores.data(), stride);
  EXPECT_EQ(answers.scores[end - begin], poison) << "wrote behind the range";
  for (float softcap : {0.0f, 2.5f}) {
    AttentionPartial partial = codec.NewPartial(kQueries);
    const AttentionOptions options{.softmax_scale = 0.4f, .logit_softcap = softcap};
    codec.Attend(answers.cell, begin, end, *queries, options, &partial);
    codec.Attend(answers.cell, 0, shape.num_tokens, *queries, options, &partial);
    std::vector<float> out(kQueries * (shape.value_dim + 1));
    codec.Finish(partial, out.data(), out.data() + kQueries * shape.value_dim);
    answers.attention.insert(answers.attention.end(), out.begin(), out.end());
  }
  return answers;
}

template <typename T>
::testing::AssertionResult BitEqual(const std::vector<T>& a, const std::vector<T>& b) {
  if (a.size() != b.size()) return ::testing::AssertionFailure() << a.size() << ", " << b.size();
  for (size_t i = 0; i < a.size(); ++i) {
    if (std::memcmp(&a[i], &b[i], sizeof(T)) != 0) {
      return ::testing::AssertionFailure() << "differs first at " << i << " of " << a.size();
    }
  }
  return ::testing::AssertionSuccess();
}

void ExpectSame(const ProfileRequest& request, const Shape& shape) {
  KvLayout layout = Layout(shape.head_dim, shape.value_dim, shape.block_tokens, shape.dtype);
  const CodecProfile profile = Resolve(request, layout);
  const auto scalar = MakeCodec(layout, profile, Isa::kScalar);
  const Answers wanted = Ask(scalar->cell(0, 0), shape, 0);
  SKETCHKV_ASSERT_OK(scalar->cell(0, 0).Validate(wanted.cell, shape.num_tokens));
  for (Isa isa : SupportedIsas()) {
    if (isa == Isa::kScalar) continue;
    SCOPED_TRACE(::testing::Message() << std::string(IsaName(isa)) << " d " << shape.head_dim
                                      << " tokens " << shape.num_tokens);
    // Rows that start at odd addresses, with NaN around them.
    const Answers got = Ask(MakeCodec(layout, profile, isa)->cell(0, 0), shape, 3);
    ASSERT_TRUE(BitEqual(got.cell, wanted.cell)) << "cell";
    ASSERT_TRUE(BitEqual(got.decoded, wanted.decoded)) << "decoded";
    ASSERT_TRUE(BitEqual(got.scores, wanted.scores)) << "scores";
    ASSERT_TRUE(BitEqual(got.attention, wanted.attention)) << "attention";
  }
}

class IsaEquality : public ::testing::TestWithParam<NamedRequest> {};
INSTANTIATE_TEST_SUITE_P(Codec, IsaEquality, ::testing::ValuesIn(AllRequests()),
                         [](const auto& info) { return info.param.name; });

TEST_P(IsaEquality, EveryDimension) {
  const ProfileRequest& request = GetParam().request;
  const bool dense =
      request.name == "qjl-paper" || request.name == "klt" || request.projection.has_value();
  for (uint32_t dim : {16u, 24u, 64u, 80u, 96u, 128u, 192u, 256u, 512u, 576u}) {
    if (dense && dim > 192) continue;  // making S takes longer than using it
    ASSERT_NO_FATAL_FAILURE(ExpectSame(request, {dim, dim, 33, 33}));
  }
  ASSERT_NO_FATAL_FAILURE(ExpectSame(request, {64, 136, 16, 16}));
}

TEST_P(IsaEquality, EveryTokenCount) {
  for (uint32_t tokens : {1u, 15u, 16u, 17u, 31u, 33u, 64u, 256u}) {
    ASSERT_NO_FATAL_FAILURE(ExpectSame(GetParam().request, {40, 24, tokens, tokens}));
  }
  ASSERT_NO_FATAL_FAILURE(ExpectSame(GetParam().request, {40, 24, 100, 35}));
  ASSERT_NO_FATAL_FAILURE(ExpectSame(GetParam().request, {16, 16, 1024, 1024}));
}

TEST_P(IsaEquality, EveryDType) {
  for (DType dtype : {DType::kFp16, DType::kFp32, DType::kFp8E4M3, DType::kFp8E5M2}) {
    ASSERT_NO_FATAL_FAILURE(ExpectSame(GetParam().request, {72, 56, 20, 18, dtype}));
  }
}

TEST(IsaTest, DispatchReachesTheKernelsAskedFor) {
  for (Isa isa : SupportedIsas()) EXPECT_EQ(KernelsOf(isa).name, IsaName(isa));
}

// Through tiles of one token and sixteen channels: fp16 rows in, fp16 rows out.
void FromHalves(const KernelTable& kernels, const uint8_t* halves, uint32_t count, float* out) {
  for (uint32_t i = 0; i < count; i += kLanes) {
    float tile[kLanes * kLanes];
    kernels.load_tile({halves + 2 * i, 0, static_cast<uint32_t>(DType::kFp16), nullptr}, 1, kLanes,
                      tile);
    for (uint32_t c = 0; c < kLanes; ++c) out[i + c] = tile[c * kLanes];
  }
}

void ToHalves(const KernelTable& kernels, const float* x, size_t count, uint16_t* out) {
  for (size_t i = 0; i < count; i += kLanes) {
    float tile[kLanes * kLanes] = {};
    for (size_t c = 0; c < kLanes && i + c < count; ++c) tile[c * kLanes] = x[i + c];
    uint16_t row[kLanes];
    kernels.store_tile(tile, 1, kLanes, reinterpret_cast<uint8_t*>(row), sizeof(row),
                       static_cast<uint32_t>(DType::kFp16));
    for (size_t c = 0; c < kLanes && i + c < count; ++c) out[i + c] = row[c];
  }
}

// Every stored scale is its own float's scale again; between two of them the nearer one is stored,
// and of the middle the even one; what is too large becomes the largest.
TEST(IsaTest, ScalesRoundToNearestEven) {
  for (Isa isa : SupportedIsas()) {
    SCOPED_TRACE(std::string(IsaName(isa)));
    const KernelTable& kernels = KernelsOf(isa);
    for (uint32_t first = 0; first + kLanes < kLargestScale; first += kLanes) {
      uint16_t scales[kLanes], back[kLanes];
      float floats[kLanes], middles[kLanes], above[kLanes];
      for (uint32_t i = 0; i < kLanes; ++i) scales[i] = static_cast<uint16_t>(first + i);
      kernels.load_scales(reinterpret_cast<const uint8_t*>(scales), kLanes, floats);
      for (uint32_t i = 0; i < kLanes; ++i) {
        middles[i] = std::bit_cast<float>((first + i) << 15 | 0x4000);
        above[i] = std::nextafterf(middles[i], std::numeric_limits<float>::infinity());
        ASSERT_EQ(floats[i], std::bit_cast<float>((first + i) << 15));
      }
      kernels.store_scales(floats, kLanes, reinterpret_cast<uint8_t*>(back));
      for (uint32_t i = 0; i < kLanes; ++i) ASSERT_EQ(back[i], first + i);
      kernels.store_scales(middles, kLanes, reinterpret_cast<uint8_t*>(back));
      for (uint32_t i = 0; i < kLanes; ++i) ASSERT_EQ(back[i], first + i + (first + i) % 2);
      kernels.store_scales(above, kLanes, reinterpret_cast<uint8_t*>(back));
      for (uint32_t i = 0; i < kLanes; ++i) ASSERT_EQ(back[i], first + i + 1);
    }
    float huge[kLanes];
    uint16_t back[kLanes];
    for (float& x : huge) x = std::numeric_limits<float>::max();
    kernels.store_scales(huge, kLanes, reinterpret_cast<uint8_t*>(back));
    for (uint16_t scale : back) ASSERT_EQ(scale, kLargestScale);
  }
}

// All 65,536 halves to float, and floats around every midpoint between two halves back.
TEST(IsaTest, HalfConversionsAreExactAndRoundToNearestEven) {
  std::vector<uint16_t> halves(65536);
  for (uint32_t i = 0; i < 65536; ++i) halves[i] = static_cast<uint16_t>(i);
  const auto* bytes = reinterpret_cast<const uint8_t*>(halves.data());
  const Matrix wanted =
      ReferenceRows(reinterpret_cast<const std::byte*>(bytes), 0, DType::kFp16, 1.0, 1, 65536);
  for (Isa isa : SupportedIsas()) {
    SCOPED_TRACE(std::string(IsaName(isa)));
    std::vector<float> floats(65536);
    FromHalves(KernelsOf(isa), bytes, 65536, floats.data());
    std::vector<uint16_t> back(65536);
    ToHalves(KernelsOf(isa), floats.data(), 65536, back.data());
    for (uint32_t i = 0; i < 65536; ++i) {
      if ((i & 0x7C00) == 0x7C00) continue;  // infinities and NaN
      ASSERT_EQ(floats[i], wanted[0][i]) << i;
      ASSERT_EQ(back[i], i);
    }
    // Between the magnitudes i and i + 1: just below the middle, the middle, just above.
    std::vector<float> between(3 * 0x7C00);
    for (uint32_t i = 0; i < 0x7BFF; ++i) {
      const float middle = (floats[i] + floats[i + 1]) / 2;
      between[3 * i] = std::nextafterf(middle, 0.0f);
      between[3 * i + 1] = middle;
      between[3 * i + 2] = std::nextafterf(middle, 1e9f);
    }
    back.assign(between.size(), 0);
    ToHalves(KernelsOf(isa), between.data(), between.size(), back.data());
    for (uint32_t i = 0; i < 0x7BFF; ++i) {
      ASSERT_EQ(back[3 * i], i);
      ASSERT_EQ(back[3 * i + 1], i + i % 2);
      ASSERT_EQ(back[3 * i + 2], i + 1);
    }
  }
}

}  // namespace
}  // namespace sketchkv::testing
