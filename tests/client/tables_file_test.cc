// Files of tables: what is written comes back, what is damaged is named.
#include "client/cpp/files/tables_file.h"

#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <random>

#include "absl/strings/str_cat.h"
#include "client/cpp/files/safetensors.h"
#include "tests/testing/status_matchers.h"

namespace sketchkv {
namespace {

constexpr uint32_t kDim = 48, kValueDim = 16;

std::vector<float> Numbers(size_t count, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> numbers(count);
  for (float& x : numbers) x = RoundToTable(normal(random));
  return numbers;
}

// Two layers of two heads; the last head has a mean alone.
TablesFile SomeTables() {
  TablesFile file;
  file.num_layers = 2;
  file.num_kv_heads = 2;
  file.head_dim = kDim;
  file.value_dim = kValueDim;
  file.profiles = {"klt:layers=0+1", "qjl3p:layers=1+1,center=table"};
  for (uint32_t i = 0; i < 4; ++i) {
    HeadTable head;
    head.key_mean = Numbers(kDim, i);
    if (i < 3) {
      head.outlier_channels = {i, 7 + i};
      head.key_basis = {Numbers(40 * kDim, 10 + i), {4, 1}, {1.5f, 0.25f}};
      head.value_mean = Numbers(kValueDim, 20 + i);
      head.value_basis = {Numbers(kValueDim * kValueDim, 30 + i), {3}, {0.1f}};
    }
    file.heads.push_back(head);
  }
  return file;
}

class TablesFileTest : public testing::Test {
 protected:
  using Metadata = std::map<std::string, std::string>;

  void SetUp() override {
    const auto* test = testing::UnitTest::GetInstance()->current_test_info();
    folder_ = absl::StrCat(testing::TempDir(), "/sketchkv_tables_", getpid(), "_", test->name());
    std::filesystem::create_directories(folder_);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  [[nodiscard]] std::string Path() const { return folder_ + "/tables.safetensors"; }

  // One tensor "layers.0.heads.0.FIELD" of zeros beside a whole one of head 0.
  void ExpectBad(const NamedTensor& tensor, std::vector<std::string> parts,
                 const Metadata& metadata = {{"sketchkv.tables", "1"}}) {
    const std::vector<float> mean(kDim);
    const std::vector<NamedTensor> tensors = {
        {"layers.0.heads.0.key_mean", "F32", {kDim}, std::as_bytes(std::span(mean))}, tensor};
    SKETCHKV_ASSERT_OK(WriteSafetensors(Path(), tensors, metadata));
    EXPECT_THAT(ReadTablesFile(Path()), StatusIs(absl::StatusCode::kInvalidArgument, parts));
  }
  NamedTensor Zeros(const std::string& name, const std::string& dtype,
                    std::vector<uint64_t> shape) {
    zeros_.resize(1 << 16);
    const size_t bytes = *TensorBytes(shape, TensorDtypeBytes(dtype));
    return {name, dtype, std::move(shape), std::span(zeros_).first(bytes)};
  }

  std::string folder_;
  std::vector<std::byte> zeros_;
};

TEST_F(TablesFileTest, ComesBackAsWritten) {
  const TablesFile written = SomeTables();
  SKETCHKV_ASSERT_OK(WriteTablesFile(Path(), written));
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const TablesFile read, ReadTablesFile(Path()));
  EXPECT_EQ(read.num_layers, 2u);
  EXPECT_EQ(read.num_kv_heads, 2u);
  EXPECT_EQ(read.head_dim, kDim);
  EXPECT_EQ(read.value_dim, kValueDim);
  EXPECT_EQ(read.profiles, written.profiles);
  EXPECT_TRUE(read.heads == written.heads);
}

TEST_F(TablesFileTest, TensorsAreWhatAnyReaderExpects) {
  SKETCHKV_ASSERT_OK(WriteTablesFile(Path(), SomeTables()));
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const SafetensorsFile file, SafetensorsFile::Open(Path()));
  EXPECT_EQ(file.metadata().at("sketchkv.tables"), "1");
  EXPECT_EQ(file.metadata().at("profiles"),
            R"(["klt:layers=0+1","qjl3p:layers=1+1,center=table"])");
  const auto expect = [&file](const std::string& field, const std::string& dtype,
                              std::vector<uint64_t> shape) {
    const NamedTensor* tensor = file.Find("layers.1.heads.0." + field);
    ASSERT_NE(tensor, nullptr) << field;
    EXPECT_EQ(tensor->dtype, dtype) << field;
    EXPECT_EQ(tensor->shape, shape) << field;
  };
  expect("key_mean", "F32", {kDim});
  expect("outlier_channels", "I32", {2});
  expect("key_basis", "F16", {40, kDim});
  expect("key_group_bits", "U8", {2});
  expect("key_group_rms", "F32", {2});
  expect("value_mean", "F32", {kValueDim});
  expect("value_basis", "F16", {kValueDim, kValueDim});
  expect("value_group_bits", "U8", {1});
  expect("value_group_rms", "F32", {1});
  EXPECT_EQ(file.Find("layers.1.heads.1.key_basis"), nullptr);
}

TEST_F(TablesFileTest, BasisIsRoundedToFp16) {
  TablesFile file = SomeTables();
  file.heads[0].key_basis.rows[3] = 0.1f;
  file.heads[0].key_mean[3] = 0.1f;
  SKETCHKV_ASSERT_OK(WriteTablesFile(Path(), file));
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const TablesFile read, ReadTablesFile(Path()));
  EXPECT_EQ(read.heads[0].key_basis.rows[3], RoundToTable(0.1f));
  EXPECT_NE(read.heads[0].key_basis.rows[3], 0.1f);
  EXPECT_EQ(read.heads[0].key_mean[3], 0.1f);
}

TEST_F(TablesFileTest, CutAnywhereIsRefused) {
  SKETCHKV_ASSERT_OK(WriteTablesFile(Path(), SomeTables()));
  const auto size = std::filesystem::file_size(Path());
  for (const uintmax_t left : {uintmax_t{0}, uintmax_t{7}, uintmax_t{100}, size / 2, size - 1}) {
    std::filesystem::resize_file(Path(), left);
    EXPECT_THAT(ReadTablesFile(Path()), StatusIs(absl::StatusCode::kInvalidArgument)) << left;
    SKETCHKV_ASSERT_OK(WriteTablesFile(Path(), SomeTables()));
  }
  EXPECT_THAT(ReadTablesFile(Path() + "x"), StatusIs(absl::StatusCode::kNotFound, {Path()}));
}

TEST_F(TablesFileTest, NamesTheBadTensor) {
  ExpectBad(Zeros("layers.0.heads.2.key_mean", "F32", {kDim}), {"layers.0.heads.1", "3 heads"});
  ExpectBad(Zeros("layers.256.heads.0.key_mean", "F32", {kDim}), {"layer 256", "256"});
  ExpectBad(Zeros("layers.0.heads.4294967296.key_mean", "F32", {kDim}), {"4294967296", "head"});
  ExpectBad(Zeros("layers.0.heads.00.key_mean", "F32", {kDim}), {"heads.00"});
  ExpectBad(Zeros("layers.0.key_mean", "F32", {kDim}), {"layers.0.key_mean"});
  ExpectBad(Zeros("layers.0.heads.0.key_rms", "F32", {kDim}), {"key_rms"});
  ExpectBad(Zeros("layers.0.heads.0.quux", "F32", {kDim}), {"quux"});
  ExpectBad(Zeros("layers.1.heads.0.key_mean", "F16", {kDim}), {"key_mean", "F16", "F32"});
  ExpectBad(Zeros("layers.1.heads.0.key_mean", "F32", {1, kDim}), {"[1, 48]", "1 dimension"});
  ExpectBad(Zeros("layers.1.heads.0.key_mean", "F32", {kDim - 1}), {"layers.1", "47", "48"});
  ExpectBad(Zeros("layers.1.heads.0.key_mean", "F32", {0}), {"layers.1", "[0]", "48"});
  ExpectBad(Zeros("layers.0.heads.0.key_basis", "F16", {40, kDim + 1}), {"key_basis", "49", "48"});
  ExpectBad(Zeros("layers.0.heads.0.key_basis", "F16", {40, kDim}),
            {"key_group_bits", "0 numbers", "40 rows", "2"});
  ExpectBad(Zeros("layers.0.heads.0.value_group_rms", "F32", {3}),
            {"value_group_rms", "3 numbers", "0 rows"});
  const int32_t negative = -3;
  ExpectBad(
      {"layers.0.heads.0.outlier_channels", "I32", {1}, std::as_bytes(std::span(&negative, 1))},
      {"outlier_channels", "-3", "0"});
}

TEST_F(TablesFileTest, NamesBadMetadata) {
  const NamedTensor fine = Zeros("layers.1.heads.0.key_mean", "F32", {kDim});
  ExpectBad(fine, {"sketchkv.tables"}, {{"format", "pt"}});
  ExpectBad(fine, {"sketchkv.tables", "2", "1"}, {{"sketchkv.tables", "2"}});
  ExpectBad(fine, {"profiles"}, {{"sketchkv.tables", "1"}, {"profiles", "klt"}});
  ExpectBad(fine, {"profiles"}, {{"sketchkv.tables", "1"}, {"profiles", "[1]"}});
  SKETCHKV_ASSERT_OK(WriteSafetensors(Path(), {}, {{"sketchkv.tables", "1"}}));
  EXPECT_THAT(ReadTablesFile(Path()), StatusIs(absl::StatusCode::kInvalidArgument, {"0 tensors"}));
}

TEST_F(TablesFileTest, RefusesToWriteWhatDoesNotGoTogether) {
  const auto expect = [this](const TablesFile& file, std::vector<std::string> parts) {
    EXPECT_THAT(WriteTablesFile(Path(), file), StatusIs(absl::StatusCode::kInvalidArgument, parts));
    EXPECT_FALSE(std::filesystem::exists(Path()));
  };
  TablesFile file = SomeTables();
  file.heads.pop_back();
  expect(file, {"3 heads", "2 layers of 2"});
  file = SomeTables();
  file.heads[3] = {};
  expect(file, {"layers.1.heads.1", "empty"});
  file = SomeTables();
  file.heads[2].key_basis.rows.pop_back();
  expect(file, {"layers.1.heads.0.key_basis", "1919", "1872"});
  file = SomeTables();
  file.heads[1].value_basis.group_bits.push_back(1);
  expect(file, {"layers.0.heads.1.value_group_bits", "2", "1"});
  file = SomeTables();
  file.heads[0].key_mean.push_back(0);
  expect(file, {"layers.0.heads.0.key_mean", "49", "48"});
}

TEST_F(TablesFileTest, AFailedWriteLeavesTheFileBefore) {
  SKETCHKV_ASSERT_OK(WriteTablesFile(Path(), SomeTables()));
  TablesFile other = SomeTables();
  other.heads[3] = {};
  EXPECT_FALSE(WriteTablesFile(Path(), other).ok());
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const TablesFile read, ReadTablesFile(Path()));
  EXPECT_TRUE(read.heads == SomeTables().heads);
  EXPECT_THAT(WriteTablesFile(folder_ + "/none/tables", SomeTables()),
              StatusIs(absl::StatusCode::kNotFound, {"none/tables"}));
  size_t files = 0;
  for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator(folder_)) ++files;
  EXPECT_EQ(files, 1u);  // no temporary is left
}

}  // namespace
}  // namespace sketchkv
