#include <cmath>
#include <cstring>
#include <limits>
#include <ostream>
#include <string>

#include "tests/gpu/gpu_cells.h"

// Encoding and decoding on the GPU give the bytes that the CPU gives.
namespace sketchkv::testing {
namespace {

using cuda::kDim;

struct Case {
  std::string name;
  ProfileRequest request;
  uint32_t block_tokens;
  DType dtype = DType::kBf16;
  double magnitude = 1.0;
};

void PrintTo(const Case& c, std::ostream* out) { *out << c.name; }

std::vector<Case> Cases() {
  std::vector<Case> cases;
  for (const std::string name : {"qjl", "qjl2p", "qjl3p"}) {
    for (const auto codec : {ValueCodec::kRotated, ValueCodec::kMinMax}) {
      ProfileRequest request = Named(name);
      request.value_codec = codec;
      const std::string full = name + (codec == ValueCodec::kRotated ? "_rotated" : "_min_max");
      for (const uint32_t block_tokens : {16, 64}) {
        cases.push_back({full + "_" + std::to_string(block_tokens), request, block_tokens});
      }
      cases.push_back({full + "_fp16", request, 32, DType::kFp16});
      cases.push_back({full + "_fp32", request, 32, DType::kFp32});
      cases.push_back({full + "_huge", request, 64, DType::kBf16, 1e37});
      cases.push_back({full + "_tiny", request, 64, DType::kFp32, 1e-36});
      cases.push_back({full + "_small", request, 16, DType::kBf16, 1e-5});
    }
  }
  cases.push_back({"large_blocks", Named("qjl3p"), 1024});
  ProfileRequest least_squares = Named("qjl2p");
  least_squares.scale_rule = ScaleRule::kLeastSquares;
  least_squares.value_scale_rule = ScaleRule::kLeastSquares;
  cases.push_back({"least_squares", least_squares, 64});
  ProfileRequest norm = Named("qjl");
  norm.scale_rule = ScaleRule::kNorm;
  cases.push_back({"norm", norm, 64});
  return cases;
}

class GpuCodecTest : public ::testing::TestWithParam<Case> {
 protected:
  static constexpr uint32_t kCells = 37;
  static constexpr size_t kGap = 48;  // between rows

  void SetUp() override {
    SKETCHKV_NEED_GPU();
    const Case& c = GetParam();
    layout_ = Layout(kDim, kDim, c.block_tokens, c.dtype);
    const CodecProfile profile = Resolve(c.request, layout_);
    codec_ = MakeCodec(layout_, profile, BestIsa());
    plan_ = *cuda::MakeCodecPlan(layout_, profile);
    row_bytes_ = kDim * DTypeBytes(c.dtype);
    stride_ = row_bytes_ + kGap;
  }

  const CellCodec& cell() const { return codec_->cell(0, 0); }
  // Of cell i: from one token to all of them.
  uint32_t TokensOf(uint32_t i) const { return 1 + i * (layout_.block_tokens - 1) / (kCells - 1); }
  size_t PartBytes() const { return layout_.block_tokens * stride_; }

  // Keys, then values, of all cells: [kCells][2][block_tokens] rows; 0xFF, a NaN, where nothing is.
  std::vector<uint8_t> RandomParts() const {
    std::vector<uint8_t> parts(kCells * 2 * PartBytes(), 0xFF);
    for (uint32_t i = 0; i < 2 * kCells; ++i) {
      const GuardedRows rows = RandomRows(layout_.block_tokens, kDim, layout_.key_dtype, 100 + i, 0,
                                          GetParam().magnitude);
      for (uint32_t t = 0; t < TokensOf(i / 2); ++t) {
        std::memcpy(parts.data() + i * PartBytes() + t * stride_,
                    rows.view().data + t * rows.view().stride_bytes, row_bytes_);
      }
    }
    return parts;
  }
  std::vector<cuda::CellRows> CellsOf(uint8_t* parts, uint8_t* cells) const {
    std::vector<cuda::CellRows> rows;
    for (uint32_t i = 0; i < kCells; ++i) {
      rows.push_back({parts + 2 * i * PartBytes(), parts + (2 * i + 1) * PartBytes(),
                      cells + i * cell().cell_bytes(), TokensOf(i)});
    }
    return rows;
  }
  RowsView Rows(const std::vector<uint8_t>& parts, uint32_t i) const {
    return {reinterpret_cast<const std::byte*>(parts.data()) + i * PartBytes(), stride_};
  }
  std::vector<std::byte> EncodeOnCpu(const std::vector<uint8_t>& parts, uint32_t i) const {
    std::vector<std::byte> bytes(cell().cell_bytes(), kPoison);
    const absl::Status status =
        cell().Encode(Rows(parts, 2 * i), Rows(parts, 2 * i + 1), TokensOf(i), bytes);
    EXPECT_TRUE(status.ok()) << status;
    return bytes;
  }
  std::vector<cuda::EncodeArgs::Checks> EncodeOnGpu(const std::vector<uint8_t>& parts,
                                                    DeviceArray<uint8_t>* cells) const {
    DeviceArray<uint8_t> input{std::span<const uint8_t>(parts)};
    const std::vector<cuda::CellRows> rows = CellsOf(input.data(), cells->data());
    DeviceArray<cuda::CellRows> table{std::span<const cuda::CellRows>(rows)};
    DeviceArray<cuda::EncodeArgs::Checks> checks(kCells);
    checks.Fill(0);
    cells->Fill(0xA5);
    CheckCuda(
        cuda::LaunchEncode(plan_,
                           {table.data(), kCells, static_cast<cuda::RowType>(layout_.key_dtype),
                            stride_, stride_, checks.data()},
                           nullptr));
    CheckCuda(cudaDeviceSynchronize());
    return checks.ToHost();
  }

  KvLayout layout_;
  std::unique_ptr<BlockCodec> codec_;
  cuda::CodecPlan plan_;
  size_t row_bytes_ = 0, stride_ = 0;
};

TEST_P(GpuCodecTest, EncodedBytesEqualTheCpus) {
  const std::vector<uint8_t> parts = RandomParts();
  DeviceArray<uint8_t> cells(kCells * cell().cell_bytes());
  const auto checks = EncodeOnGpu(parts, &cells);
  const std::vector<uint8_t> encoded = cells.ToHost();
  for (uint32_t i = 0; i < kCells; ++i) {
    const std::vector<std::byte> expected = EncodeOnCpu(parts, i);
    const auto* got = reinterpret_cast<const std::byte*>(encoded.data()) + i * expected.size();
    size_t wrong = 0, first = 0;
    for (size_t b = expected.size(); b > 0; --b) {
      if (got[b - 1] == expected[b - 1]) continue;
      ++wrong;
      first = b - 1;
    }
    ASSERT_EQ(wrong, 0) << "bytes of cell " << i << " of " << TokensOf(i)
                        << " tokens differ, the first at " << first << " of " << expected.size()
                        << " (planes at " << plan_.cell.planes << ", values at "
                        << plan_.cell.values << ")";
    EXPECT_EQ(checks[i].not_finite[0], 0);
    EXPECT_EQ(checks[i].not_finite[1], 0);
  }
}

TEST_P(GpuCodecTest, DecodedRowsEqualTheCpus) {
  const std::vector<uint8_t> parts = RandomParts();
  std::vector<uint8_t> encoded;
  for (uint32_t i = 0; i < kCells; ++i) {
    const std::vector<std::byte> cell_bytes = EncodeOnCpu(parts, i);
    const auto* bytes = reinterpret_cast<const uint8_t*>(cell_bytes.data());
    encoded.insert(encoded.end(), bytes, bytes + cell_bytes.size());
  }
  DeviceArray<uint8_t> cells{std::span<const uint8_t>(encoded)};
  DeviceArray<uint8_t> output(parts.size());
  output.Fill(0xA5);
  const std::vector<cuda::CellRows> rows = CellsOf(output.data(), cells.data());
  DeviceArray<cuda::CellRows> table{std::span<const cuda::CellRows>(rows)};
  CheckCuda(cuda::LaunchDecode(
      plan_,
      {table.data(), kCells, static_cast<cuda::RowType>(layout_.key_dtype), stride_, stride_},
      nullptr));
  CheckCuda(cudaDeviceSynchronize());
  const std::vector<uint8_t> decoded = output.ToHost();

  std::vector<uint8_t> expected(parts.size(), 0xA5);
  for (uint32_t i = 0; i < kCells; ++i) {
    const std::span<const std::byte> bytes(
        reinterpret_cast<const std::byte*>(encoded.data()) + i * cell().cell_bytes(),
        cell().cell_bytes());
    auto* out = reinterpret_cast<std::byte*>(expected.data()) + 2 * i * PartBytes();
    const absl::Status status = cell().Decode(bytes, TokensOf(i), layout_.key_dtype, {out, stride_},
                                              layout_.key_dtype, {out + PartBytes(), stride_});
    ASSERT_TRUE(status.ok()) << status;
  }
  for (size_t b = 0; b < expected.size(); ++b) {
    ASSERT_EQ(decoded[b], expected[b])
        << "cell " << b / (2 * PartBytes()) << (b / PartBytes() % 2 == 0 ? " keys" : " values")
        << " token " << b % PartBytes() / stride_ << " byte " << b % PartBytes() % stride_;
  }
}

TEST_P(GpuCodecTest, NumbersThatAreNotFiniteAreFound) {
  std::vector<uint8_t> parts = RandomParts();
  const auto spoil = [&](uint32_t part, uint32_t token, uint32_t channel) {
    // All ones but for the sign: NaN in every type.
    uint8_t* number = parts.data() + part * PartBytes() + token * stride_ +
                      channel * DTypeBytes(layout_.key_dtype);
    std::memset(number, 0xFF, DTypeBytes(layout_.key_dtype));
  };
  const uint32_t last = TokensOf(kCells - 1) - 1;
  spoil(0, 0, 5);                    // cell 0, keys
  spoil(2 * kCells - 1, last, 127);  // the last cell, values
  spoil(2 * kCells - 1, last, 3);
  spoil(2 * kCells - 1, last / 2, 77);  // which is the first of these
  DeviceArray<uint8_t> cells(kCells * cell().cell_bytes());
  const auto checks = EncodeOnGpu(parts, &cells);
  const auto place = [](uint32_t kept) { return 0u - 1 - kept; };
  EXPECT_EQ(place(checks[0].not_finite[0]), 5);
  EXPECT_EQ(checks[0].not_finite[1], 0);
  EXPECT_EQ(checks[kCells - 1].not_finite[0], 0);
  EXPECT_EQ(place(checks[kCells - 1].not_finite[1]), last / 2 * kDim + 77);
  for (uint32_t i = 1; i + 1 < kCells; ++i) {
    EXPECT_EQ(checks[i].not_finite[0], 0);
    EXPECT_EQ(checks[i].not_finite[1], 0);
  }
}

INSTANTIATE_TEST_SUITE_P(All, GpuCodecTest, ::testing::ValuesIn(Cases()),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace sketchkv::testing
