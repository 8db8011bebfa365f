#pragma once

#include <gtest/gtest.h>
#include <sys/wait.h>

#include <cstdio>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "client/cpp/demo/server_process.h"
#include "client/cpp/files/float_formats.h"
#include "client/cpp/files/npy.h"
#include "tests/testing/status_matchers.h"

namespace sketchkv {

using nlohmann::json;

struct Ran {
  int exit_code = -1;
  std::string out;
};

// Arguments are the tests' own and need no quoting.
inline Ran RunShell(const std::string& command) {
  Ran ran;
  FILE* pipe = popen(command.c_str(), "r");
  if (pipe == nullptr) return ran;
  char buffer[4096];
  for (size_t n = 0; (n = fread(buffer, 1, sizeof(buffer), pipe)) > 0;) ran.out.append(buffer, n);
  const int status = pclose(pipe);
  if (WIFEXITED(status)) ran.exit_code = WEXITSTATUS(status);
  return ran;
}

class CliTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    auto scratch = demo::TemporaryDirectory::Create();
    SKETCHKV_ASSERT_OK(scratch);
    scratch_ = std::move(*scratch);
    auto server = demo::ServerProcess::Start(SKETCHKV_SERVER_PROGRAM, 64 << 20, scratch_->path(),
                                             [] { return false; });
    SKETCHKV_ASSERT_OK(server);
    server_ = std::move(*server);
  }
  static void TearDownTestSuite() {
    server_ = nullptr;
    scratch_ = nullptr;
  }

  void SetUp() override { ASSERT_NE(server_, nullptr); }

  static std::string File(const std::string& name) { return scratch_->path() + "/" + name; }
  static Ran Run(const std::string& arguments) {
    return RunShell(absl::StrCat(SKETCHKV_PROGRAM, " --server ", server_->address(), " ", arguments,
                                 " 2>", File("stderr")));
  }
  static std::string Stderr() {
    std::ifstream file(File("stderr"));
    return {std::istreambuf_iterator<char>(file), {}};
  }
  static json RunJson(const std::string& arguments) {
    const Ran ran = Run(arguments + " --json");
    EXPECT_EQ(ran.exit_code, 0) << arguments << "\n" << Stderr();
    json parsed = json::parse(ran.out, nullptr, false);
    EXPECT_TRUE(parsed.is_object()) << ran.out;
    return parsed;
  }
  // All models of these tests but for name and profile.
  static std::string RegisterCommand(const std::string& name) {
    return absl::StrCat("models register ", name, " --layers 2 --kv-heads 2 --head-dim 32 ",
                        "--block-tokens 16 --dtype fp16");
  }
  static void Register(const std::string& name, const std::string& profile) {
    RunJson(absl::StrCat(RegisterCommand(name), " --profile ", profile));
  }
  // Keys and values with float16 numbers, in float32 npy files.
  static std::vector<float> WriteArray(const std::string& name, uint32_t seed,
                                       std::vector<uint64_t> shape) {
    uint64_t count = 1;
    for (const uint64_t extent : shape) count *= extent;
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    std::vector<float> numbers(count);
    for (float& x : numbers) x = Fp16ToFloat(FloatToFp16(normal(random)));
    SKETCHKV_EXPECT_OK(WriteNpy(File(name), {"", "F32", shape, std::as_bytes(std::span(numbers))}));
    return numbers;
  }
  static std::vector<float> ReadArray(const std::string& name, std::vector<uint64_t> shape) {
    const auto file = NpyFile::Open(File(name));
    SKETCHKV_EXPECT_OK(file);
    if (!file.ok()) return {};
    EXPECT_EQ(file->tensor().shape, shape);
    std::vector<float> numbers(file->tensor().num_elements());
    SKETCHKV_EXPECT_OK(ReadFloats(file->tensor(), 0, numbers));
    return numbers;
  }

  inline static std::unique_ptr<demo::TemporaryDirectory> scratch_;
  inline static std::unique_ptr<demo::ServerProcess> server_;
};

}  // namespace sketchkv
