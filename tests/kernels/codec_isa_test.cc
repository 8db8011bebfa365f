#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/cpu/kernel_table.h"
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
  const Answers wanted = Ask(scalar->cell(0), shape, 0);
  SKETCHKV_ASSERT_OK(scalar->cell(0).Validate(wanted.cell, shape.num_tokens));
  for (Isa isa : SupportedIsas()) {
    if (isa == Isa::kScalar) continue;
    SCOPED_TRACE(::testing::Message() << std::string(IsaName(isa)) << " d " << shape.head_dim
                                      << " tokens " << shape.num_tokens);
    // Rows that start at odd addresses, with NaN around them.
    const Answers got = Ask(MakeCodec(layout, profile, isa)->cell(0), shape, 3);
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
  const bool dense = request.name == "qjl-paper" || request.projection.has_value();
  for (uint32_t dim : {16u, 24u, 64u, 80u, 96u, 128u, 192u, 576u}) {
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
    KernelsOf(isa).from_half(bytes, 65536, floats.data());
    std::vector<uint16_t> back(65536);
    KernelsOf(isa).to_half(floats.data(), 65536, reinterpret_cast<uint8_t*>(back.data()));
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
    KernelsOf(isa).to_half(between.data(), between.size(), reinterpret_cast<uint8_t*>(back.data()));
    for (uint32_t i = 0; i < 0x7BFF; ++i) {
      ASSERT_EQ(back[3 * i], i);
      ASSERT_EQ(back[3 * i + 1], i + i % 2);
      ASSERT_EQ(back[3 * i + 2], i + 1);
    }
  }
}

}  // namespace
}  // namespace sketchkv::testing
