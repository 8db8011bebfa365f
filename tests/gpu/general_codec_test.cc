#include <gmock/gmock.h>

#include <cstring>

#include "tests/gpu/general_cells.h"
#include "tests/testing/status_matchers.h"

// The general path encodes to the bytes that the CPU encodes to, and decodes to the numbers that it
// decodes to: every profile, on a card, and its code on a host.
namespace sketchkv::testing {
namespace {

constexpr uint32_t kCells = 5;

// Cells of a subject with rows between poison, and the same encoded by the CPU.
class Cells {
 public:
  Cells(const GeneralSubject& subject, double magnitude) : subject_(subject) {
    const KvLayout& layout = subject.layout();
    key_stride_ = Stride(layout.head_dim, layout.key_dtype);
    value_stride_ = Stride(layout.value_dim, layout.value_dtype);
    key_part_ = layout.block_tokens * key_stride_;
    part_ = key_part_ + layout.block_tokens * value_stride_;
    rows_.assign(kCells * part_, 0xFF);  // a NaN of every type
    for (uint32_t i = 0; i < kCells; ++i) {
      Fill(RandomRows(layout.block_tokens, layout.head_dim, layout.key_dtype, 2 * i, 0, magnitude),
           layout.key_row_bytes(), TokensOf(i), key_stride_, Keys(i));
      Fill(RandomRows(layout.block_tokens, layout.value_dim, layout.value_dtype, 2 * i + 1, 0,
                      magnitude),
           layout.value_dim * DTypeBytes(layout.value_dtype), TokensOf(i), value_stride_,
           Values(i));
    }
  }

  static uint32_t HeadOf(uint32_t i) { return i % GeneralSubject::kHeads; }
  // From one token to all of them.
  uint32_t TokensOf(uint32_t i) const {
    return 1 + i * (subject_.layout().block_tokens - 1) / (kCells - 1);
  }
  uint8_t* Keys(uint32_t i) { return rows_.data() + i * part_; }
  uint8_t* Values(uint32_t i) { return Keys(i) + key_part_; }
  size_t key_stride() const { return key_stride_; }
  size_t value_stride() const { return value_stride_; }

  std::vector<std::byte> EncodeOnCpu(uint32_t i) {
    std::vector<std::byte> cell(subject_.plan().cell_bytes, kPoison);
    const absl::Status status = subject_.cell(HeadOf(i)).Encode(
        {reinterpret_cast<const std::byte*>(Keys(i)), key_stride_},
        {reinterpret_cast<const std::byte*>(Values(i)), value_stride_}, TokensOf(i), cell);
    EXPECT_TRUE(status.ok()) << status;
    return cell;
  }
  // [kCells] cells, and what is said of their numbers.
  std::vector<std::byte> EncodeHere(std::vector<cuda::EncodeArgs::Checks>* checks) {
    const size_t cell_bytes = subject_.plan().cell_bytes;
    GeneralRunner& runner = subject_.runner();
    uint8_t* const rows = runner.PutAll(rows_);
    std::byte* const cells = runner.PutAll(std::vector<std::byte>(kCells * cell_bytes, kPoison));
    std::vector<cuda::GeneralCell> table;
    for (uint32_t i = 0; i < kCells; ++i) {
      uint8_t* const keys = rows + i * part_;
      table.push_back({{keys, keys + key_part_, reinterpret_cast<uint8_t*>(cells) + i * cell_bytes,
                        TokensOf(i)},
                       HeadOf(i)});
    }
    auto* const kept = runner.PutAll(std::vector<cuda::EncodeArgs::Checks>(kCells));
    runner.Encode(subject_.plan(),
                  {runner.PutAll(table), kCells, key_stride_, value_stride_, kept});
    *checks = runner.GetAll(kept, kCells);
    return runner.GetAll(cells, kCells * cell_bytes);
  }

 private:
  // An odd gap of numbers.
  static size_t Stride(uint32_t dim, DType dtype) { return (dim + 5) * DTypeBytes(dtype); }
  static void Fill(const GuardedRows& rows, size_t row_bytes, uint32_t count, size_t stride,
                   uint8_t* out) {
    for (uint32_t t = 0; t < count; ++t) {
      std::memcpy(out + t * stride, rows.view().data + t * rows.view().stride_bytes, row_bytes);
    }
  }

  const GeneralSubject& subject_;
  size_t key_stride_ = 0, value_stride_ = 0, key_part_ = 0, part_ = 0;
  std::vector<uint8_t> rows_;
};

void ExpectSameBytes(std::span<const std::byte> got, std::span<const std::byte> expected,
                     const char* what) {
  ASSERT_EQ(got.size(), expected.size());
  size_t wrong = 0, first = 0;
  for (size_t b = expected.size(); b > 0; --b) {
    if (got[b - 1] == expected[b - 1]) continue;
    ++wrong;
    first = b - 1;
  }
  ASSERT_EQ(wrong, 0) << what << ": bytes differ, the first is " << first << " of "
                      << expected.size();
}

void ExpectDecoded(const GeneralSubject& subject, uint32_t head, std::span<const std::byte> cell,
                   uint32_t num_tokens, DType key_type, DType value_type) {
  const KvLayout& layout = subject.layout();
  const size_t key_stride = (layout.head_dim + 3) * DTypeBytes(key_type);
  const size_t value_stride = (layout.value_dim + 3) * DTypeBytes(value_type);
  const size_t values_at = layout.block_tokens * key_stride;
  std::vector<std::byte> expected(values_at + layout.block_tokens * value_stride, kPoison);
  GeneralRunner& runner = subject.runner();
  std::byte* const out = runner.PutAll(expected);
  auto* const bytes = reinterpret_cast<uint8_t*>(out);
  const std::vector<cuda::GeneralCell> table = {
      {{bytes, bytes + values_at, runner.Put(cell.data(), cell.size()), num_tokens}, head}};
  runner.Decode(subject.plan(), {runner.PutAll(table), 1, static_cast<uint32_t>(key_type),
                                 static_cast<uint32_t>(value_type), key_stride, value_stride});
  SKETCHKV_ASSERT_OK(subject.cell(head).Decode(cell, num_tokens, key_type,
                                               {expected.data(), key_stride}, value_type,
                                               {expected.data() + values_at, value_stride}));
  ExpectSameBytes(runner.GetAll(out, expected.size()), expected, "decoded");
}

void ExpectSame(const KvLayout& layout, const ProfileRequest& request, RunOn where,
                double magnitude = 1.0) {
  SCOPED_TRACE(::testing::Message()
               << "head_dim " << layout.head_dim << " value_dim " << layout.value_dim
               << " block_tokens " << layout.block_tokens << " "
               << std::string(DTypeName(layout.key_dtype)) << " magnitude " << magnitude);
  const GeneralSubject subject(layout, request, where);
  ASSERT_EQ(subject.plan().cell_bytes, subject.codec().cell_bytes(0));
  Cells cells(subject, magnitude);
  std::vector<cuda::EncodeArgs::Checks> checks;
  const std::vector<std::byte> encoded = cells.EncodeHere(&checks);
  const size_t cell_bytes = subject.plan().cell_bytes;
  for (uint32_t i = 0; i < kCells; ++i) {
    SCOPED_TRACE(::testing::Message() << "cell " << i << " of " << cells.TokensOf(i) << " tokens");
    const std::vector<std::byte> expected = cells.EncodeOnCpu(i);
    ASSERT_NO_FATAL_FAILURE(ExpectSameBytes(std::span(encoded).subspan(i * cell_bytes, cell_bytes),
                                            expected, "encoded"));
    EXPECT_EQ(checks[i].not_finite[0], 0);
    EXPECT_EQ(checks[i].not_finite[1], 0);
    if (i % 2 == 1) continue;
    const uint32_t head = Cells::HeadOf(i);
    for (const DType type : {DType::kFp32, DType::kBf16, DType::kFp16}) {
      ASSERT_NO_FATAL_FAILURE(
          ExpectDecoded(subject, head, expected, cells.TokensOf(i), type, type));
    }
    // Raw halves of 8 bits come back as they are.
    const CodecProfile& profile = subject.profile();
    ASSERT_NO_FATAL_FAILURE(
        ExpectDecoded(subject, head, expected, cells.TokensOf(i),
                      profile.key_codec == KeyCodec::kRaw ? layout.key_dtype : DType::kBf16,
                      profile.value_codec == ValueCodec::kRaw ? layout.value_dtype : DType::kBf16));
  }
}

class GeneralCodecTest : public ::testing::TestWithParam<GeneralCase> {
 protected:
  void SetUp() override {
    if (GetParam().where == RunOn::kCard) SKETCHKV_NEED_GPU();
  }
  static void Check(const KvLayout& layout, double magnitude = 1.0) {
    ExpectSame(layout, GetParam().profile.request, GetParam().where, magnitude);
  }
};
SKETCHKV_GENERAL_SUITES(GeneralCodecTest);

TEST_P(GeneralCodecTest, BytesEqualTheCpusInEveryShape) {
  for (const auto& [head_dim, value_dim, block_tokens] :
       std::vector<std::array<uint32_t, 3>>{{16, 24, 1},
                                            {24, 16, 40},
                                            {40, 24, 100},
                                            {64, 136, 16},
                                            {80, 80, 48},
                                            {128, 128, 64},
                                            {192, 96, 17},
                                            {16, 16, 1024}}) {
    ASSERT_NO_FATAL_FAILURE(Check(Layout(head_dim, value_dim, block_tokens)));
  }
  for (const uint32_t dim : {256u, 512u, 576u}) {
    if (IsDense(GetParam().profile.request)) break;
    ASSERT_NO_FATAL_FAILURE(Check(Layout(dim, dim, 20)));
  }
}

TEST_P(GeneralCodecTest, BytesEqualTheCpusForEveryDType) {
  for (const DType dtype : {DType::kFp16, DType::kFp32, DType::kFp8E4M3, DType::kFp8E5M2}) {
    ASSERT_NO_FATAL_FAILURE(Check(Layout(72, 56, 20, dtype)));
  }
}

TEST_P(GeneralCodecTest, BytesEqualTheCpusAtTheEndsOfTheFloatRange) {
  for (const double magnitude : {1.5e38 / 9, 1e-31, 1e-41, 0x1p31, 0x1p-14}) {
    for (const DType dtype : {DType::kBf16, DType::kFp32}) {
      ASSERT_NO_FATAL_FAILURE(Check(Layout(48, 40, 36, dtype), magnitude));
    }
  }
}

TEST_P(GeneralCodecTest, NumbersThatAreNotFiniteAreFound) {
  const KvLayout layout = Layout(40, 24, 36);
  const GeneralSubject subject(layout, GetParam().profile.request, GetParam().where);
  Cells cells(subject, 1.0);
  const auto spoil = [&](uint8_t* rows, size_t stride, uint32_t token, uint32_t channel) {
    std::memset(rows + token * stride + 2 * channel, 0xFF, 2);
  };
  spoil(cells.Keys(0), cells.key_stride(), 0, 5);
  const uint32_t last = kCells - 1, tokens = cells.TokensOf(last);
  spoil(cells.Values(last), cells.value_stride(), tokens - 1, 1);
  spoil(cells.Values(last), cells.value_stride(), tokens / 2, 23);
  spoil(cells.Values(last), cells.value_stride(), tokens / 2, 17);  // the first of these
  std::vector<cuda::EncodeArgs::Checks> checks;
  cells.EncodeHere(&checks);
  const auto place = [](uint32_t kept) { return 0u - 1 - kept; };
  EXPECT_EQ(place(checks[0].not_finite[0]), 5);
  EXPECT_EQ(checks[0].not_finite[1], 0);
  EXPECT_EQ(checks[last].not_finite[0], 0);
  EXPECT_EQ(place(checks[last].not_finite[1]), tokens / 2 * 24 + 17);
  for (uint32_t i = 1; i < last; ++i) {
    EXPECT_EQ(checks[i].not_finite[0], 0);
    EXPECT_EQ(checks[i].not_finite[1], 0);
  }
}

class GeneralPlaceTest : public ::testing::TestWithParam<RunOn> {
 protected:
  void SetUp() override {
    if (GetParam() == RunOn::kCard) SKETCHKV_NEED_GPU();
  }
};
INSTANTIATE_TEST_SUITE_P(OnHost, GeneralPlaceTest, ::testing::Values(RunOn::kHost));
INSTANTIATE_TEST_SUITE_P(OnCard, GeneralPlaceTest, ::testing::Values(RunOn::kCard));

TEST_P(GeneralPlaceTest, WidestHeads) {
  for (const char* name : {"raw", "qjl", "qjl-paper", "qjl4p", "klt"}) {
    ASSERT_NO_FATAL_FAILURE(ExpectSame(Layout(576, 576, 18), Named(name), GetParam()));
  }
}

TEST_P(GeneralPlaceTest, ValuesThatAreAPrefixOfTheKeys) {
  KvLayout layout = Layout(72, 40, 36);
  layout.value_source = ValueSource::kKeyPrefix;
  ASSERT_NO_FATAL_FAILURE(ExpectSame(layout, Named("raw"), GetParam()));
}

TEST_P(GeneralPlaceTest, TypesOfKeysAndValuesMayDiffer) {
  KvLayout layout = Layout(64, 48, 32);
  layout.value_dtype = DType::kFp32;
  ASSERT_NO_FATAL_FAILURE(ExpectSame(layout, Named("qjl3p"), GetParam()));
  ASSERT_NO_FATAL_FAILURE(ExpectSame(layout, Named("raw"), GetParam()));
}

}  // namespace
}  // namespace sketchkv::testing
