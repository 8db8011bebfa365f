// `sketchkv tune` and sketchkv_roundtrip as their users run them: processes, files, exit codes.
#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "client/cpp/files/npy.h"
#include "client/cpp/files/tables_file.h"
#include "tests/client/planted_samples.h"
#include "tests/testing/status_matchers.h"

namespace sketchkv {
namespace {

using nlohmann::json;

struct Ran {
  int exit_code = -1;
  std::string out, err;
};

class TuneCommandTest : public testing::Test {
 protected:
  static constexpr uint32_t kDim = 64;

  void SetUp() override {
    const auto* test = testing::UnitTest::GetInstance()->current_test_info();
    folder_ =
        absl::StrCat(testing::TempDir(), "/sketchkv_tune_command_", getpid(), "_", test->name());
    std::filesystem::create_directories(folder_);
    PlantedSamples planted = {
        .num_layers = 2, .num_kv_heads = 2, .dim = kDim, .strong = 16, .num_tokens = 1024};
    SKETCHKV_ASSERT_OK(planted.Write(File("samples")));
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  [[nodiscard]] std::string File(const std::string& name) const { return folder_ + "/" + name; }
  [[nodiscard]] std::string Read(const std::string& name) const {
    std::ifstream file(File(name));
    return {std::istreambuf_iterator<char>(file), {}};
  }
  // Arguments are the tests' own and need no quoting.
  Ran Run(const std::string& command) {
    const int status =
        std::system(absl::StrCat(command, " >", File("out"), " 2>", File("err")).c_str());
    return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, Read("out"), Read("err")};
  }
  Ran Tune(const std::string& arguments) {
    return Run(absl::StrCat(SKETCHKV_PROGRAM, " tune --samples ", File("samples"), " --out ",
                            File("tables"), " ", arguments));
  }
  // Arrays of 3 segments of 100 tokens in the shape of the samples.
  void WriteArray(const std::string& name, uint32_t heads = 2) {
    std::mt19937 random(3);
    std::normal_distribution<float> normal;
    std::vector<float> numbers(3 * 2 * heads * 100 * kDim);
    for (float& x : numbers) x = 1 + normal(random);
    SKETCHKV_ASSERT_OK(WriteNpy(
        File(name), {"", "F32", {3, 2, heads, 100, kDim}, std::as_bytes(std::span(numbers))}));
  }
  Ran RoundTrip(const std::string& arguments) {
    return Run(absl::StrCat(SKETCHKV_ROUNDTRIP, " --keys ", File("k"), " --values ", File("v"),
                            " --out-keys ", File("ko"), " --out-values ", File("vo"), " ",
                            arguments));
  }
  // |b - a| / |a| of two arrays.
  double Difference(const std::string& a, const std::string& b) {
    const auto read = [this](const std::string& name) {
      const absl::StatusOr<NpyFile> file = NpyFile::Open(File(name));
      SKETCHKV_EXPECT_OK(file);
      EXPECT_EQ(file->tensor().shape, (std::vector<uint64_t>{3, 2, 2, 100, kDim}));
      std::vector<float> numbers(file->tensor().num_elements());
      SKETCHKV_EXPECT_OK(ReadFloats(file->tensor(), 0, numbers));
      return numbers;
    };
    const std::vector<float> x = read(a), y = read(b);
    double difference = 0, norm = 0;
    for (size_t i = 0; i < x.size(); ++i) {
      difference += (y[i] - x[i]) * (y[i] - x[i]);
      norm += x[i] * x[i];
    }
    return std::sqrt(difference / norm);
  }

  std::string folder_;
};

TEST_F(TuneCommandTest, WritesTablesAndPrintsTheChoice) {
  const Ran ran = Tune(absl::StrCat("--target-bits 2.6 --json ", File("json")));
  ASSERT_EQ(ran.exit_code, 0) << ran.err;
  EXPECT_EQ(ran.err, "");
  EXPECT_THAT(ran.out, testing::HasSubstr("chosen"));
  EXPECT_THAT(ran.out, testing::HasSubstr(File("tables")));
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const TablesFile tables, ReadTablesFile(File("tables")));
  EXPECT_EQ(tables.num_layers, 2u);
  EXPECT_EQ(tables.num_kv_heads, 2u);
  const json report = json::parse(Read("json"), nullptr, false);
  ASSERT_TRUE(report.is_object());
  EXPECT_EQ(report["profiles"], json(tables.profiles));
  EXPECT_LE(report["bits_per_number"]["all"], 2.6);

  const Ran again = Run(absl::StrCat(SKETCHKV_PROGRAM, " --json tune --target-bits 2.6 --samples ",
                                     File("samples"), " --out ", File("tables2")));
  EXPECT_TRUE(json::parse(again.out, nullptr, false) == report);
  EXPECT_TRUE(Read("tables") == Read("tables2"));
}

TEST_F(TuneCommandTest, ExitCodesAndMessages) {
  EXPECT_EQ(Tune("").exit_code, 2);
  EXPECT_EQ(Tune("--target-bits 3 --target-error 0.1").exit_code, 2);
  EXPECT_EQ(Tune("--key-row-bits 64").exit_code, 2);
  EXPECT_EQ(Tune("--target-bits 3 --holdout 1.5").exit_code, 2);
  EXPECT_EQ(Tune("--target-bits 3 --profile qjl:nothing=1").exit_code, 2);
  const Ran out_of_reach = Tune("--target-error 1e-6");
  EXPECT_EQ(out_of_reach.exit_code, 1);
  EXPECT_THAT(out_of_reach.err, testing::HasSubstr("1e-06"));
  EXPECT_FALSE(std::filesystem::exists(File("tables")));
  const Ran missing = Run(absl::StrCat(SKETCHKV_PROGRAM, " tune --target-bits 3 --samples ",
                                       File("none"), " --out ", File("tables")));
  EXPECT_EQ(missing.exit_code, 1);
  EXPECT_THAT(missing.err, testing::HasSubstr("none"));
  const Ran few = Tune("--target-bits 5 --holdout 0.9");
  EXPECT_EQ(few.exit_code, 0);
  EXPECT_THAT(few.err, testing::AllOf(testing::HasSubstr("102"), testing::HasSubstr("256")));
}

TEST_F(TuneCommandTest, RoundTripWithTables) {
  PlantedSamples white = {.num_layers = 2, .num_kv_heads = 2, .dim = kDim, .strong = kDim};
  SKETCHKV_ASSERT_OK(white.Write(File("samples")));  // as the arrays are
  WriteArray("k");
  WriteArray("v");
  ASSERT_EQ(Tune("--key-row-bits 256 --value-row-bits 192 --block-tokens 32").exit_code, 0);
  const Ran ran = RoundTrip(absl::StrCat("--block-tokens 32 --tables ", File("tables")));
  ASSERT_EQ(ran.exit_code, 0) << ran.err;
  const json line = json::parse(ran.out, nullptr, false);
  EXPECT_EQ(line["profiles"], (json{"klt", "klt"}));
  // 256 and 192 bits and a scale of 16 a token, of 64 channels.
  EXPECT_EQ(line["key_bits"], (256 + 16) / 64.0);
  EXPECT_EQ(line["value_bits"], (192 + 16) / 64.0);
  EXPECT_EQ(line["slot_bytes"], 2 * 2 * 32 * (272 + 208) / 8);
  // 4 bits a coordinate, and 3 or 4 and 2; of rows with a mean of 1 and a variance of 1.
  EXPECT_NEAR(Difference("k", "ko"), std::sqrt(0.0095 / 2), 0.01);
  EXPECT_LT(Difference("v", "vo"), std::sqrt(0.0635 / 2) + 0.01);
  EXPECT_GT(Difference("v", "vo"), std::sqrt(0.0345 / 2) - 0.01);
}

TEST_F(TuneCommandTest, RoundTripOfRawIsExact) {
  WriteArray("k");
  WriteArray("v");
  const Ran ran = RoundTrip("--profile raw --dtype fp32 --block-tokens 16");
  ASSERT_EQ(ran.exit_code, 0) << ran.err;
  EXPECT_EQ(json::parse(ran.out, nullptr, false)["bits"], 32);
  EXPECT_EQ(Difference("k", "ko"), 0);
  EXPECT_EQ(Difference("v", "vo"), 0);
  ASSERT_EQ(RoundTrip("--profile raw --dtype bf16").exit_code, 0);
  EXPECT_LT(Difference("k", "ko"), 0.004);
  EXPECT_GT(Difference("k", "ko"), 0);
}

TEST_F(TuneCommandTest, RoundTripByLayerRange) {
  WriteArray("k");
  WriteArray("v");
  const Ran ran = RoundTrip("--profile qjl4p:layers=0+1,value_bits=4 --profile raw:layers=1+1");
  ASSERT_EQ(ran.exit_code, 0) << ran.err;
  EXPECT_EQ(json::parse(ran.out, nullptr, false)["profiles"], (json{"qjl4p", "raw"}));
  const Ran uncovered = RoundTrip("--profile raw:layers=1+1");
  EXPECT_EQ(uncovered.exit_code, 1);
  EXPECT_THAT(uncovered.err, testing::HasSubstr("layer 0"));
  EXPECT_EQ(RoundTrip("").exit_code, 1);
  EXPECT_EQ(RoundTrip("--nothing").exit_code, 2);
  WriteArray("v", 1);
  const Ran other = RoundTrip("--profile raw");
  EXPECT_EQ(other.exit_code, 1);
  EXPECT_THAT(other.err, testing::HasSubstr("[3, 2, 1, 100, 64]"));
}

}  // namespace
}  // namespace sketchkv
