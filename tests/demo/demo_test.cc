#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <memory>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "client/cpp/demo/child_process.h"
#include "client/cpp/demo/server_process.h"
#include "client/cpp/demo/setting.h"
#include "client/cpp/files/tables_file.h"
#include "kernels/codec.h"
#include "tests/testing/status_matchers.h"

// The demo as its user runs it: the built programs, as processes. Every process it starts names
// this test's own temporary folder in its command line, which is how the tests find them.
namespace sketchkv::demo {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

const std::string kProgram = SKETCHKV_PROGRAM;
const std::string kServerProgram = SKETCHKV_SERVER_PROGRAM;

bool Never() { return false; }

std::string ReadFile(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();  // sets a flag where a file of /proc goes while it is read
  return text.str();
}

class DemoTest : public testing::Test {
 protected:
  void SetUp() override {
    char name[] = "/tmp/sketchkv-demo-test-XXXXXX";
    ASSERT_NE(mkdtemp(name), nullptr);
    dir_ = name;
    std::filesystem::create_directory(dir_ / "tmp");
    ASSERT_EQ(setenv("TMPDIR", (dir_ / "tmp").c_str(), 1), 0);
  }
  void TearDown() override { std::filesystem::remove_all(dir_); }

  // stderr goes to dir_/stderr.
  [[nodiscard]] std::unique_ptr<ChildProcess> StartDemo(
      const std::vector<std::string>& args) const {
    ChildProcess::Options options;
    options.argv = {kProgram, "demo"};
    options.argv.insert(options.argv.end(), args.begin(), args.end());
    options.capture_stdout = true;
    options.log_file = dir_ / "stderr";
    absl::StatusOr<std::unique_ptr<ChildProcess>> process = ChildProcess::Start(options);
    EXPECT_THAT(process, IsOk());
    return *std::move(process);
  }
  [[nodiscard]] std::string Stderr() const { return ReadFile(dir_ / "stderr"); }

  // Processes with `word` and this test's folder for temporary files in their command line.
  [[nodiscard]] std::vector<pid_t> Processes(const std::string& word) const {
    std::vector<pid_t> pids;
    for (const auto& entry : std::filesystem::directory_iterator("/proc")) {
      const std::string name = entry.path().filename();
      if (name.find_first_not_of("0123456789") != std::string::npos) continue;
      const std::string command = ReadFile(entry.path() / "cmdline");
      if (command.find((dir_ / "tmp").string()) != std::string::npos &&
          command.find(word) != std::string::npos) {
        pids.push_back(static_cast<pid_t>(std::stol(name)));
      }
    }
    return pids;
  }
  // Waits until there are such processes, or until there are none.
  [[nodiscard]] std::vector<pid_t> Await(const std::string& word, bool some) const {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(60);
    std::vector<pid_t> pids = Processes(word);
    while (pids.empty() == some && std::chrono::steady_clock::now() < deadline) {
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
      pids = Processes(word);
    }
    return pids;
  }
  void ExpectNothingLeft() const {
    EXPECT_THAT(Processes(""), IsEmpty());
    EXPECT_TRUE(std::filesystem::is_empty(dir_ / "tmp"));
  }

  std::filesystem::path dir_;
};

void ExpectReading(const nlohmann::json& reading, double exact_bits) {
  const double bits = reading.at("bits_per_byte"), kl = reading.at("kl_bits");
  EXPECT_NEAR(bits, exact_bits, 0.1);
  EXPECT_GE(kl, -1e-9);
  EXPECT_LT(kl, 0.1);
  EXPECT_GT(reading.at("top1_agreement"), 0.85);
  EXPECT_LE(reading.at("top1_agreement"), 1.0);
}

// Sizes of tiny-lm's blocks under a profile, from the codec itself.
std::unique_ptr<BlockCodec> MakeCodec(const std::string& profile) {
  KvLayout layout{.num_layers = 4,
                  .num_kv_heads = 2,
                  .head_dim = 128,
                  .value_dim = 128,
                  .block_tokens = kBlockTokens};
  std::shared_ptr<const ModelTables> tables;
  if (profile == kTunedProfile) {
    TablesFile file = ReadTablesFile(SKETCHKV_DEMO_DATA "/klt.safetensors").value();
    tables = std::make_shared<const ModelTables>(
        ModelTables::Create(layout, std::move(file.heads)).value());
  }
  std::vector<CodecProfile> profiles;
  for (uint32_t layer = 0; layer < layout.num_layers; ++layer) {
    ProfileRequest request;
    request.name = profile;
    profiles.push_back(ResolveProfile(request, layout, layer, tables.get()).value());
  }
  return std::move(BlockCodec::Create(layout, profiles, Isa::kScalar, tables)).value();
}

TEST_F(DemoTest, MeasuresAllProfilesAndKeepsItsBars) {
  const int segments = getenv("SKETCHKV_TEST_SHORT") != nullptr ? 1 : 3;
  const std::string json_file = dir_ / "report.json";
  const auto demo = StartDemo({"--segments", std::to_string(segments), "--json", json_file});
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const std::string text, demo->Finish(Never));
  ExpectNothingLeft();
  EXPECT_THAT(text, HasSubstr("all bars hold"));
  EXPECT_THAT(Stderr(), HasSubstr("teacher-forced pass"));

  const nlohmann::json report = nlohmann::json::parse(ReadFile(json_file));
  EXPECT_EQ(report.at("model"), "tiny-lm");
  EXPECT_EQ(report.at("text_bytes"), segments * 255);
  const double exact_bits = report.at("exact").at("bits_per_byte");
  EXPECT_GT(exact_bits, 1.5);
  EXPECT_LT(exact_bits, 3.5);
  std::vector<std::string> names;
  for (const nlohmann::json& profile : report.at("profiles")) {
    names.push_back(profile.at("profile"));
    SCOPED_TRACE(names.back());
    ExpectReading(profile.at("decoded"), exact_bits);
    ExpectReading(profile.at("attended"), exact_bits);
    EXPECT_NEAR(profile.at("decoded").at("bits_per_byte").get<double>(),
                profile.at("attended").at("bits_per_byte").get<double>(), 0.001);
    const std::unique_ptr<BlockCodec> codec = MakeCodec(names.back());
    const size_t blocks = (segments + 1) * kStoredTokens / kBlockTokens;
    EXPECT_EQ(profile.at("raw_bytes"), blocks * kBlockTokens * 4 * 2 * 128 * 2 * 2);
    EXPECT_EQ(profile.at("stored_bytes"), blocks * codec->slot_bytes());
    const BitsPerNumber bits = codec->bits_per_number();
    EXPECT_NEAR(profile.at("bits_per_number").at("keys").get<double>(), bits.keys, 1e-9);
    EXPECT_NEAR(profile.at("bits_per_number").at("values").get<double>(), bits.values, 1e-9);
    EXPECT_NEAR(profile.at("bits_per_number").at("all").get<double>(), bits.all, 1e-9);
    for (const char* step : {"put", "lookup", "get", "attend_per_token"}) {
      EXPECT_GT(profile.at("ms").at(step).get<double>(), 0.0) << step;
    }
    EXPECT_THAT(text, HasSubstr("\n" + names.back() + ": "));
  }
  EXPECT_THAT(names, ElementsAre("raw", "klt", "qjl3p", "qjl", "qjl-paper"));
  for (const char* reading : {"decoded", "attended"}) {
    const auto kl = [&](size_t i) -> double { return report["profiles"][i][reading]["kl_bits"]; };
    EXPECT_LT(kl(0), 1e-6);
    // A sketch loses something: were these as small, it would not have been read at all.
    for (size_t i = 1; i < names.size(); ++i) EXPECT_GT(kl(i), 1e-5) << names[i];
    EXPECT_LT(kl(1), kl(2)) << "tuned, at fewer bits than the default";
    EXPECT_LT(kl(2), kl(3)) << "the default is better than plain signs, at about the same size";
  }
}

TEST_F(DemoTest, UsesARunningServerAndLeavesNothingThere) {
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const auto scratch, TemporaryDirectory::Create());
  SKETCHKV_ASSERT_OK_AND_ASSIGN(
      const auto server, ServerProcess::Start(kServerProgram, 64 << 20, scratch->path(), Never));
  const std::string text_file = dir_ / "mine.txt";
  std::string text;
  for (int i = 0; text.size() < 1100; ++i) text += "line " + std::to_string(i * i) + " of mine\n";
  std::ofstream(text_file) << text;
  const auto demo = StartDemo({"--server", server->address(), "--text", text_file, "--profiles",
                               "qjl", "--json", dir_ / "report.json"});
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const std::string output, demo->Finish(Never));
  EXPECT_THAT(output, HasSubstr("1 segment of 1024 bytes of mine.txt"));
  const nlohmann::json report = nlohmann::json::parse(ReadFile(dir_ / "report.json"));
  EXPECT_EQ(report.at("text_bytes"), 255);
  EXPECT_EQ(report.at("profiles").size(), 1u);

  SKETCHKV_ASSERT_OK_AND_ASSIGN(const auto client, Connect(server->address()));
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const ServerStats stats, client->GetStats());
  EXPECT_GT(stats.put_stored_bytes_total, 0u);
  EXPECT_EQ(stats.leases, 0u);
  EXPECT_EQ(stats.tiers.at(0).blocks, 0u);
  EXPECT_EQ(stats.tiers.at(0).used_bytes, 0u);
  SKETCHKV_EXPECT_OK(server->Stop());
}

TEST_F(DemoTest, AKilledDecodeWorkerFailsTheDemo) {
  const auto demo = StartDemo({"--segments", "1", "--profiles", "qjl"});
  const std::vector<pid_t> workers = Await("demo-decode", true);
  ASSERT_EQ(workers.size(), 1u) << Stderr();
  EXPECT_EQ(Processes("--port-file").size(), 1u);  // its sketchkvd
  ASSERT_EQ(kill(workers[0], SIGKILL), 0);
  EXPECT_THAT(demo->Finish(Never), StatusIs(absl::StatusCode::kInternal, {"exit code 1"}));
  EXPECT_THAT(Stderr(), HasSubstr("the worker `demo-decode` ended with signal 9"));
  ExpectNothingLeft();
}

TEST_F(DemoTest, AnInterruptStopsEverything) {
  const auto demo = StartDemo({"--segments", "8"});
  ASSERT_EQ(Await("demo-prefill", true).size(), 1u) << Stderr();
  ASSERT_EQ(kill(demo->pid(), SIGINT), 0);
  EXPECT_THAT(demo->Finish(Never), StatusIs(absl::StatusCode::kInternal, {"exit code 130"}));
  ExpectNothingLeft();
}

TEST_F(DemoTest, AKilledDemoLeavesNoProcess) {
  const auto demo = StartDemo({"--segments", "8"});
  ASSERT_EQ(Await("demo-decode", true).size(), 1u) << Stderr();
  ASSERT_EQ(kill(demo->pid(), SIGKILL), 0);
  EXPECT_THAT(Await("", false), IsEmpty());
}

TEST_F(DemoTest, NamesWhatItCannotDo) {
  const struct {
    std::vector<std::string> args;
    std::vector<std::string> words;
  } cases[] = {
      {{"--segments", "1", "--profiles", "qjl9"}, {"qjl9"}},
      {{"--segments", "1", "--profiles", "raw,raw"}, {"raw", "twice"}},
      {{"--segments", "34"}, {"sample.txt", "16384", "17408"}},
      {{"--text", "/no/such.txt"}, {"/no/such.txt"}},
      {{"--model-dir", "/no/such"}, {"/no/such"}},
  };
  for (const auto& one : cases) {
    std::filesystem::remove(dir_ / "stderr");
    const auto demo = StartDemo(one.args);
    EXPECT_THAT(demo->Finish(Never), StatusIs(absl::StatusCode::kInternal, {"exit code 1"}));
    for (const std::string& word : one.words) EXPECT_THAT(Stderr(), HasSubstr(word));
    ExpectNothingLeft();
  }
}

}  // namespace
}  // namespace sketchkv::demo
