#include "client/cpp/demo/report.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "client/cpp/demo/accuracy.h"
#include "client/cpp/demo/demo_texts.h"
#include "client/cpp/demo/setting.h"
#include "client/cpp/demo/workers.h"
#include "tests/testing/status_matchers.h"

namespace sketchkv::demo {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

TEST(AccuracyTest, MatchesHandComputedDistributions) {
  // Exact (1/2, 1/4, 1/8, 1/8), the other uniform: KL = sum p log2(4p) = 2 - 1.75 bits.
  const std::vector<float> exact = {std::log(4.0f), std::log(2.0f), 0.0f, 0.0f};
  const std::vector<float> uniform = {5.0f, 5.0f, 5.0f, 5.0f};
  Accuracy accuracy;
  EXPECT_EQ(accuracy.Mean().bits_per_byte, 0.0);
  accuracy.Add(exact, uniform, 3);
  EXPECT_NEAR(accuracy.Mean().bits_per_byte, 2.0, 1e-6);
  EXPECT_NEAR(accuracy.Mean().kl_bits, 0.25, 1e-6);
  EXPECT_EQ(accuracy.Mean().top1_agreement, 1.0);  // a tie: the first of them
  // Exact against itself: the entropy's text cost, no divergence.
  accuracy.Add(exact, exact, 1);
  EXPECT_NEAR(accuracy.Mean().bits_per_byte, (2.0 + 2.0) / 2, 1e-6);
  EXPECT_NEAR(accuracy.Mean().kl_bits, 0.125, 1e-6);
  const std::vector<float> other_top = {0.0f, 9.0f, 0.0f, 0.0f};
  accuracy.Add(exact, other_top, 1);
  EXPECT_EQ(accuracy.count(), 3u);
  EXPECT_NEAR(accuracy.Mean().top1_agreement, 2.0 / 3, 1e-12);
}

Report GoodReport() {
  Report report;
  report.model = "tiny-lm";
  report.setting = "1 segment";
  report.text_bytes = 255;
  report.exact_bits_per_byte = 2.5;
  report.prompt_end = "once upon";
  for (const char* name : {"raw", "qjl"}) {
    ProfileReport profile;
    profile.profile = name;
    profile.decoded = {2.5, 0.0, 1.0};
    profile.attended = {2.5, 0.0, 1.0};
    profile.raw_bytes = 600;
    profile.stored_bytes = 100;
    profile.all_bits = 2.625;
    profile.put_ms = 1.5;
    profile.num_prefixes = 3;
    profile.decoded_text = profile.attended_text = std::string("a\nb\xff");
    report.profiles.push_back(profile);
  }
  report.profiles[1].decoded = {2.51, 0.01, 0.9};
  report.profiles[1].attended = {2.5109, 0.0102, 0.91};
  return report;
}

TEST(ReportTest, BarsHoldUpToTheirBounds) { EXPECT_THAT(BrokenBars(GoodReport()), IsEmpty()); }

TEST(ReportTest, EachBarBreaksAlone) {
  Report report = GoodReport();
  report.profiles[1].attended.bits_per_byte = 2.5111;
  EXPECT_THAT(BrokenBars(report),
              ElementsAre(HasSubstr("qjl: bits per byte decoded and attended")));
  report = GoodReport();
  report.profiles[0].attended.kl_bits = 2e-6;
  EXPECT_THAT(BrokenBars(report), ElementsAre(HasSubstr("raw: KL from exact")));
  report = GoodReport();
  report.profiles[0].decoded.bits_per_byte = 2.50002;
  EXPECT_THAT(BrokenBars(report), ElementsAre(HasSubstr("raw: bits per byte and exact")));
  report = GoodReport();
  report.profiles[1].decoded.bits_per_byte = std::numeric_limits<double>::quiet_NaN();
  EXPECT_THAT(BrokenBars(report), ElementsAre(HasSubstr("qjl")));
}

TEST(ReportTest, JsonHasExactlyTheStatedFields) {
  const nlohmann::json json = nlohmann::json::parse(ReportJson(GoodReport()));
  const auto keys = [](const nlohmann::json& object) {
    std::vector<std::string> names;
    for (const auto& [name, value] : object.items()) names.push_back(name);
    return names;
  };
  EXPECT_THAT(keys(json), ElementsAre("exact", "model", "profiles", "text_bytes"));
  EXPECT_THAT(keys(json["exact"]), ElementsAre("bits_per_byte"));
  ASSERT_EQ(json["profiles"].size(), 2u);
  const nlohmann::json& qjl = json["profiles"][1];
  EXPECT_THAT(keys(qjl), ElementsAre("attended", "bits_per_number", "decoded", "ms", "profile",
                                     "raw_bytes", "stored_bytes"));
  EXPECT_THAT(keys(qjl["attended"]), ElementsAre("bits_per_byte", "kl_bits", "top1_agreement"));
  EXPECT_THAT(keys(qjl["decoded"]), ElementsAre("bits_per_byte", "kl_bits", "top1_agreement"));
  EXPECT_THAT(keys(qjl["bits_per_number"]), ElementsAre("all", "keys", "values"));
  EXPECT_THAT(keys(qjl["ms"]), ElementsAre("attend_per_token", "get", "lookup", "put"));
  EXPECT_EQ(qjl["attended"]["kl_bits"], 0.0102);
  EXPECT_EQ(qjl["bits_per_number"]["all"], 2.625);
}

TEST(ReportTest, TextShowsRatioAndBothTexts) {
  Report report = GoodReport();
  EXPECT_THAT(ReportText(report), HasSubstr("600 bytes as bf16, 100 stored: ratio 6.00"));
  EXPECT_THAT(ReportText(report), HasSubstr("the same 4 bytes from both readings"));
  EXPECT_THAT(ReportText(report), HasSubstr("    | a\n    | b\\xff\n"));
  report.profiles[1].attended_text = "a\nc?";
  EXPECT_THAT(ReportText(report), HasSubstr("the readings differ from byte 2 on"));
  EXPECT_THAT(ReportText(report), HasSubstr("    | a\n    | c?\n"));
}

TEST(ReportTest, MedianOfAnEvenCountLiesBetweenTheMiddles) {
  EXPECT_EQ(Median({}), 0.0);
  EXPECT_EQ(Median({9, 1, 4}), 4.0);
  EXPECT_EQ(Median({9, 1, 4, 6}), 5.0);
}

TEST(WorkerResultsTest, ComeBackAsTheyWere) {
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const PrefillResult prefill,
                                ParsePrefillResult(ToJson(PrefillResult{{1.5, 2.25}}), 2));
  EXPECT_THAT(prefill.put_ms, ElementsAre(1.5, 2.25));
  const std::string text("\0\xff{\"", 4);
  const DecodeResult sent{{{0.5, 1.5, 2.5, text, "other"}}};
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const DecodeResult decode, ParseDecodeResult(ToJson(sent), 1));
  EXPECT_EQ(decode.profiles[0].decoded_text, text);
  EXPECT_EQ(decode.profiles[0].attended_text, "other");
  EXPECT_EQ(decode.profiles[0].attend_ms_per_token, 2.5);
}

TEST(WorkerResultsTest, DamageIsNamed) {
  for (const char* bad : {"", "{}", "[1", "[{},{}]", "[]"}) {
    EXPECT_THAT(ParsePrefillResult(bad, 1), StatusIs(absl::StatusCode::kInvalidArgument)) << bad;
  }
  EXPECT_THAT(ParsePrefillResult(R"([{"put_ms": "x"}])", 1),
              StatusIs(absl::StatusCode::kInvalidArgument, {"put_ms"}));
  EXPECT_THAT(ParseDecodeResult(R"([{"lookup_ms": 1, "get_ms": 1, "attend_ms_per_token": 1,
                                     "decoded_text": "61"}])",
                                1),
              StatusIs(absl::StatusCode::kInvalidArgument, {"attended_text"}));
}

DemoOptions OptionsWith(uint32_t segments) {
  DemoOptions options;
  options.model_dir = std::string(SKETCHKV_TEST_DATA) + "/tiny-lm";
  options.segments = segments;
  return options;
}

TEST(DemoTextsTest, HalfHeldOutHalfSampled) {
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const DemoTexts texts, ReadTexts(OptionsWith(3)));
  EXPECT_EQ(texts.segments.size(), 3u);
  EXPECT_EQ(texts.prompt.size(), kPromptBytes);
  EXPECT_TRUE(std::equal(texts.prompt.begin(), texts.prompt.end(), texts.segments[0].begin()));
  EXPECT_NE(texts.segments[0], texts.segments[1]);
  SKETCHKV_ASSERT_OK_AND_ASSIGN(
      const std::vector<uint8_t> sample,
      ReadText(std::string(SKETCHKV_TEST_DATA) + "/tiny-lm/sample.txt", 1));
  EXPECT_TRUE(std::equal(texts.segments[2].begin(), texts.segments[2].end(), sample.begin()));
  EXPECT_THAT(texts.description, HasSubstr("2 held out, 1 sampled"));
}

TEST(DemoTextsTest, TooLittleTextIsRefusedWithBothNumbers) {
  EXPECT_THAT(ReadTexts(OptionsWith(40)),
              StatusIs(absl::StatusCode::kInvalidArgument, {"sample.txt", "16384", "20480"}));
  DemoOptions own = OptionsWith(4);
  own.text_file = std::string(testing::TempDir()) + "/short_text_" + std::to_string(getpid());
  std::ofstream(own.text_file) << std::string(1023, 'x');
  EXPECT_THAT(ReadTexts(own), StatusIs(absl::StatusCode::kInvalidArgument, {"1023", "1024"}));
  std::ofstream(own.text_file) << std::string(3000, 'x');
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const DemoTexts texts, ReadTexts(own));
  EXPECT_EQ(texts.segments.size(), 2u);
  std::remove(own.text_file.c_str());
}

TEST(SettingTest, ModelsAreNamedForFolderAndProfile) {
  EXPECT_EQ(ModelName("a/tiny-lm", "qjl"), "tiny-lm/qjl");
  EXPECT_EQ(ModelName("a/tiny-lm//", "raw"), "tiny-lm/raw");
  EXPECT_EQ(ModelName("tiny-lm/.", "raw"), "tiny-lm/raw");
}

}  // namespace
}  // namespace sketchkv::demo
