// Readers and writers of array files on good, truncated and hostile input.
#include <bit>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>

#include "absl/strings/str_cat.h"
#include "client/cpp/files/float_formats.h"
#include "client/cpp/files/npy.h"
#include "client/cpp/files/safetensors.h"
#include "tests/testing/status_matchers.h"

namespace sketchkv {
namespace {

class FilesTest : public testing::Test {
 protected:
  std::string Path(const std::string& name) {
    const auto* test = testing::UnitTest::GetInstance()->current_test_info();
    return absl::StrCat(testing::TempDir(), "/sketchkv_", test->name(), "_", name);
  }
  std::string Write(const std::string& content) {
    const std::string path = Path("input");
    std::ofstream(path, std::ios::binary) << content;
    return path;
  }
  static std::string Read(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
  }
  static std::string Safetensors(const std::string& header, size_t data_bytes) {
    const uint64_t length = header.size();
    std::string file(reinterpret_cast<const char*>(&length), sizeof(length));
    return file + header + std::string(data_bytes, '\0');
  }
  static std::string Npy(const std::string& header, size_t data_bytes) {
    std::string file("\x93NUMPY\x01\x00", 8);
    file += static_cast<char>(header.size() & 0xFF);
    file += static_cast<char>(header.size() >> 8);
    return file + header + std::string(data_bytes, '\0');
  }
  void ExpectBadSafetensors(const std::string& header, size_t data_bytes,
                            std::vector<std::string> parts) {
    EXPECT_THAT(SafetensorsFile::Open(Write(Safetensors(header, data_bytes))),
                StatusIs(absl::StatusCode::kInvalidArgument, parts))
        << header;
  }
  void ExpectBadNpy(const std::string& header, size_t data_bytes, std::vector<std::string> parts) {
    EXPECT_THAT(NpyFile::Open(Write(Npy(header, data_bytes))),
                StatusIs(absl::StatusCode::kInvalidArgument, parts))
        << header;
  }
};

TEST_F(FilesTest, SafetensorsRoundTrip) {
  const std::vector<float> a = {1, -2, 3.5f, 4, 5, 6};
  const std::vector<uint16_t> b = {FloatToBf16(0.5f), FloatToBf16(-8)};
  const std::vector<NamedTensor> written = {
      {"a", "F32", {2, 3}, std::as_bytes(std::span(a))},
      {"b", "BF16", {2}, std::as_bytes(std::span(b))},
      {"empty", "I64", {0, 7}, {}},
  };
  const std::string path = Path("file");
  SKETCHKV_ASSERT_OK(WriteSafetensors(path, written, {{"format", "pt"}}));
  SKETCHKV_ASSERT_OK_AND_ASSIGN(SafetensorsFile opened, SafetensorsFile::Open(path));
  const SafetensorsFile file = std::move(opened);  // views survive
  EXPECT_EQ(file.metadata().at("format"), "pt");
  ASSERT_EQ(file.tensors().size(), 3u);
  const NamedTensor* tensor = file.Find("a");
  ASSERT_NE(tensor, nullptr);
  EXPECT_EQ(tensor->shape, (std::vector<uint64_t>{2, 3}));
  std::vector<float> floats(2);
  SKETCHKV_ASSERT_OK(ReadFloats(*tensor, 1, floats));
  EXPECT_EQ(floats, (std::vector<float>{-2, 3.5f}));
  SKETCHKV_ASSERT_OK(ReadFloats(*file.Find("b"), 0, floats));
  EXPECT_EQ(floats, (std::vector<float>{0.5f, -8}));
  EXPECT_THAT(ReadFloats(*tensor, 5, floats),
              StatusIs(absl::StatusCode::kInvalidArgument, {"7", "6"}));
  EXPECT_EQ(file.Find("c"), nullptr);
}

TEST_F(FilesTest, SafetensorsCutAnywhereIsRefused) {
  const std::vector<float> data(5, 1.0f);
  const NamedTensor tensor = {"x", "F32", {5}, std::as_bytes(std::span(data))};
  const std::string path = Path("whole");
  SKETCHKV_ASSERT_OK(WriteSafetensors(path, std::span(&tensor, 1)));
  const std::string whole = Read(path);
  for (size_t size = 0; size < whole.size(); ++size) {
    EXPECT_THAT(SafetensorsFile::Open(Write(whole.substr(0, size))),
                StatusIs(absl::StatusCode::kInvalidArgument))
        << size;
  }
  EXPECT_THAT(SafetensorsFile::Open(Write(whole + "x")),
              StatusIs(absl::StatusCode::kInvalidArgument, {"20", "21"}));
}

TEST_F(FilesTest, HostileSafetensorsHeadersAreRefused) {
  ExpectBadSafetensors("[]", 0, {"not a JSON object"});
  ExpectBadSafetensors(std::string(100'000, '['), 0, {"not a JSON object"});
  ExpectBadSafetensors(R"({"x": 3})", 0, {"\"x\"", "object"});
  ExpectBadSafetensors(R"({"x": {"dtype": "C64", "shape": [1], "data_offsets": [0, 8]}})", 8,
                       {"C64"});
  ExpectBadSafetensors(R"({"x": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}})", 4,
                       {"shape"});
  ExpectBadSafetensors(R"({"x": {"dtype": "F32", "shape": [1.0], "data_offsets": [0, 4]}})", 4,
                       {"shape"});
  // 2^62 * 4 and 2^32 * 2^32 * 4 are 0 modulo 2^64.
  ExpectBadSafetensors(
      R"({"x": {"dtype": "F32", "shape": [4611686018427387904], "data_offsets": [0, 0]}})", 0,
      {"more than 2^64"});
  ExpectBadSafetensors(
      R"({"x": {"dtype": "F32", "shape": [4294967296, 4294967296], "data_offsets": [0, 0]}})", 0,
      {"more than 2^64"});
  ExpectBadSafetensors(R"({"x": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}})", 4,
                       {"4 to 0"});
  ExpectBadSafetensors(
      R"({"x": {"dtype": "U8", "shape": [1], "data_offsets": [18446744073709551615, 0]}})", 4,
      {"18446744073709551615"});
  ExpectBadSafetensors(R"({"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}})", 4,
                       {"8", "4"});
  ExpectBadSafetensors(R"({"x": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}})", 8,
                       {"begins at 4", "ends at 0"});  // a hole
  ExpectBadSafetensors(R"({"x": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]},
                           "y": {"dtype": "U8", "shape": [4], "data_offsets": [2, 6]}})",
                       6, {"begins at 2", "ends at 4"});  // an overlap
  ExpectBadSafetensors(R"({"__metadata__": {"a": 1}})", 0, {"__metadata__"});
  std::string huge = Safetensors("{}", 0);
  std::memset(huge.data(), 0xFF, 8);
  EXPECT_THAT(SafetensorsFile::Open(Write(huge)),
              StatusIs(absl::StatusCode::kInvalidArgument, {"18446744073709551615"}));
}

TEST_F(FilesTest, MissingFileAndFolder) {
  EXPECT_THAT(SafetensorsFile::Open(Path("none")), StatusIs(absl::StatusCode::kNotFound, {"none"}));
  EXPECT_THAT(NpyFile::Open(testing::TempDir()), StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST_F(FilesTest, NpyRoundTrip) {
  const std::vector<int32_t> data = {1, -2, 3};
  for (const std::vector<uint64_t>& shape :
       std::vector<std::vector<uint64_t>>{{3}, {1, 3}, {3, 1, 1}}) {
    const std::string path = Path("file");
    SKETCHKV_ASSERT_OK(WriteNpy(path, {"", "I32", shape, std::as_bytes(std::span(data))}));
    EXPECT_EQ(Read(path).find('\n') % 64, 63u);
    SKETCHKV_ASSERT_OK_AND_ASSIGN(const NpyFile file, NpyFile::Open(path));
    EXPECT_EQ(file.tensor().shape, shape);
    SKETCHKV_ASSERT_OK_AND_ASSIGN(const std::vector<int64_t> back, ReadIntegers(file.tensor()));
    EXPECT_EQ(back, (std::vector<int64_t>{1, -2, 3}));
  }
  EXPECT_THAT(WriteNpy(Path("bf16"), {"", "BF16", {1}, std::as_bytes(std::span(data)).first(2)}),
              StatusIs(absl::StatusCode::kInvalidArgument, {"BF16", "safetensors"}));
}

// As numpy.save writes them.
TEST_F(FilesTest, ReadsWhatNumpyWrites) {
  const std::string half = "{'descr': '<f2', 'fortran_order': False, 'shape': (2,), }   \n";
  SKETCHKV_ASSERT_OK_AND_ASSIGN(
      const NpyFile file, NpyFile::Open(Write(Npy(half, 0) + std::string("\0\x3C\0\xC0", 4))));
  std::vector<float> floats(2);
  SKETCHKV_ASSERT_OK(ReadFloats(file.tensor(), 0, floats));
  EXPECT_EQ(floats, (std::vector<float>{1, -2}));
  const std::string scalar = "{'descr': '|u1', 'fortran_order': False, 'shape': (), }\n";
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const NpyFile one, NpyFile::Open(Write(Npy(scalar, 1))));
  EXPECT_TRUE(one.tensor().shape.empty());
  EXPECT_EQ(one.tensor().num_elements(), 1u);
}

TEST_F(FilesTest, NpyCutAnywhereIsRefused) {
  const std::string whole = Npy("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 1), }\n", 8);
  SKETCHKV_ASSERT_OK(NpyFile::Open(Write(whole)));
  for (size_t size = 0; size < whole.size(); ++size) {
    EXPECT_THAT(NpyFile::Open(Write(whole.substr(0, size))),
                StatusIs(absl::StatusCode::kInvalidArgument))
        << size;
  }
  EXPECT_THAT(NpyFile::Open(Write(whole + "x")),
              StatusIs(absl::StatusCode::kInvalidArgument, {"8", "9"}));
}

TEST_F(FilesTest, AnUnknownNpyVersionIsNamed) {
  std::string file = Npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1,), }\n", 4);
  file[6] = '\xC8';
  EXPECT_THAT(NpyFile::Open(Write(file)),
              StatusIs(absl::StatusCode::kInvalidArgument, {"npy version 200"}));
}

TEST_F(FilesTest, HostileNpyHeadersAreRefused) {
  ExpectBadNpy("{'descr': '>f4', 'fortran_order': False, 'shape': (1,), }", 4, {">f4"});
  ExpectBadNpy("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }", 8, {"|O"});
  ExpectBadNpy("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,), }", 4,
               {"structured"});
  ExpectBadNpy("{'descr': '<f4', 'fortran_order': True, 'shape': (2, 2), }", 16, {"fortran_order"});
  ExpectBadNpy("{'descr': '<f4', 'fortran_order': False, 'shape': (-1,), }", 4, {"shape"});
  ExpectBadNpy("{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999999999,), }", 4,
               {"shape"});
  ExpectBadNpy("{'descr': '<f4', 'fortran_order': False, 'shape': (4611686018427387904,), }", 0,
               {"more than 2^64"});
  ExpectBadNpy("{'descr': '<f4', 'fortran_order': False, 'shape': (1,)", 4, {"npy header"});
  ExpectBadNpy("{'descr': '<f4', 'shape': (1,), }", 4, {"fortran_order"});
  ExpectBadNpy("{'descr': '<f4', 'descr': '<f4', 'fortran_order': False, 'shape': (1,)}", 4,
               {"descr"});
  ExpectBadNpy("__import__('os')", 4, {"npy header"});
  std::string many = "{'descr': '<f4', 'fortran_order': False, 'shape': (";
  for (int i = 0; i < 40; ++i) many += "1,";
  ExpectBadNpy(many + ")}", 4, {"32"});
}

TEST(FloatFormats, EveryValueComesBack) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const auto half = static_cast<uint16_t>(bits);
    if (!std::isnan(Fp16ToFloat(half))) {
      ASSERT_EQ(FloatToFp16(Fp16ToFloat(half)), half);
    }
    if (!std::isnan(Bf16ToFloat(half))) {
      ASSERT_EQ(FloatToBf16(Bf16ToFloat(half)), half);
    }
    if (bits > 0xFF) continue;
    const auto byte = static_cast<uint8_t>(bits);
    if (!std::isnan(Fp8E4M3ToFloat(byte))) {
      ASSERT_EQ(FloatToFp8E4M3(Fp8E4M3ToFloat(byte)), byte);
    }
    if (!std::isnan(Fp8E5M2ToFloat(byte))) {
      ASSERT_EQ(FloatToFp8E5M2(Fp8E5M2ToFloat(byte)), byte);
    }
  }
}

TEST(FloatFormats, RoundToNearestEven) {
  EXPECT_EQ(FloatToFp16(1 + 0x1p-11f), 0x3C00);      // a tie, to even
  EXPECT_EQ(FloatToFp16(1 + 3 * 0x1p-11f), 0x3C02);  // a tie, to even
  EXPECT_EQ(FloatToFp16(1 + 0x1.1p-11f), 0x3C01);
  EXPECT_EQ(FloatToFp16(65519), 0x7BFF);
  EXPECT_EQ(FloatToFp16(65520), 0x7C00);     // to infinity
  EXPECT_EQ(FloatToFp16(0x1p-25f), 0x0000);  // half the least subnormal, to even
  EXPECT_EQ(FloatToFp16(0x1.8p-25f), 0x0001);
  EXPECT_EQ(FloatToFp16(0x1.FFEp-15f), 0x0400);  // subnormal that rounds up to normal
  EXPECT_EQ(FloatToBf16(1 + 0x1p-8f), 0x3F80);
  EXPECT_EQ(FloatToBf16(1 + 3 * 0x1p-8f), 0x3F82);
  EXPECT_EQ(Fp8E4M3ToFloat(0x7E), 448);
  EXPECT_TRUE(std::isnan(Fp8E4M3ToFloat(0x7F)));
  EXPECT_EQ(FloatToFp8E4M3(464), 0x7E);  // a tie with 480, which there is not
  EXPECT_EQ(FloatToFp8E4M3(465), 0x7F);
  EXPECT_EQ(FloatToFp8E5M2(-std::numeric_limits<float>::infinity()), 0xFC);
  EXPECT_EQ(FloatToBf16(std::bit_cast<float>(0x7F800001u)), 0x7FC0);  // NaN stays NaN
}

}  // namespace
}  // namespace sketchkv
