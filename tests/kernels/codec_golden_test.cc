#include <gtest/gtest.h>

#include <cstring>
#include <fstream>
#include <iterator>

#include "tests/kernels/codec_testing.h"
#include "tests/kernels/golden_cells.h"
#include "tests/testing/status_matchers.h"

// The bytes under tests/golden are what every build and every CPU encodes. A difference is a change
// of the stored format: if it is meant, run sketchkv_make_golden and say so in kernels/README.md.
namespace sketchkv::testing {
namespace {

std::vector<std::byte> ReadGolden(const std::string& file) {
  std::ifstream in(std::string(SKETCHKV_GOLDEN_DIR) + "/" + file, std::ios::binary);
  const std::string text((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
  std::vector<std::byte> bytes(text.size());
  std::memcpy(bytes.data(), text.data(), text.size());
  return bytes;
}

TEST(GoldenTest, EveryIsaEncodesTheGoldenBytes) {
  for (const GoldenCell& golden : GoldenCells()) {
    const std::vector<std::byte> wanted = ReadGolden(golden.file);
    for (Isa isa : SupportedIsas()) {
      const std::vector<std::byte> cell = EncodeGolden(golden, isa);
      ASSERT_EQ(cell.size(), wanted.size()) << golden.file;
      for (size_t i = 0; i < cell.size(); ++i) {
        ASSERT_EQ(cell[i], wanted[i])
            << golden.file << " byte " << i << " on " << std::string(IsaName(isa));
      }
    }
  }
}

// The bytes of v1 are read for ever, and mean what they meant: from the files alone, on every ISA.
TEST(GoldenTest, EveryIsaReadsTheGoldenBytesAsEver) {
  for (const GoldenCell& golden : GoldenCells()) {
    SCOPED_TRACE(golden.file);
    const std::vector<std::byte> cell = ReadGolden(golden.file);
    const std::vector<std::byte> wanted = ReadGolden(golden.file + ".answers");
    for (Isa isa : SupportedIsas()) {
      const std::vector<float> answers = AnswersOf(golden, cell, isa);
      ASSERT_EQ(answers.size() * sizeof(float), wanted.size());
      for (size_t i = 0; i < answers.size(); ++i) {
        ASSERT_EQ(std::memcmp(&answers[i], wanted.data() + 4 * i, 4), 0)
            << "number " << i << " is " << answers[i] << " on " << std::string(IsaName(isa));
      }
    }
  }
}

TEST(GoldenTest, TablesAreThoseTheCellsWereMadeWith) {
  for (const GoldenCell& golden : GoldenCells()) {
    const std::vector<uint8_t> tables = TablesOf(golden);
    if (tables.empty()) continue;
    const std::vector<std::byte> wanted = ReadGolden(golden.file + ".tables");
    ASSERT_EQ(tables.size(), wanted.size()) << golden.file;
    EXPECT_EQ(std::memcmp(tables.data(), wanted.data(), tables.size()), 0) << golden.file;
  }
}

TEST(GoldenTest, GoldenBytesAreValid) {
  for (const GoldenCell& golden : GoldenCells()) {
    const auto codec = MakeCodec(golden.layout, Resolve(golden.request, golden.layout), BestIsa());
    SKETCHKV_EXPECT_OK(codec->cell(0, 0).Validate(ReadGolden(golden.file), golden.num_tokens));
  }
}

}  // namespace
}  // namespace sketchkv::testing
