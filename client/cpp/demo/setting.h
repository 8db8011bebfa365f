#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "client/cpp/examples/past_kv.h"
#include "sketchkv/client.h"

// What the demo's processes must agree on.
namespace sketchkv::demo {

inline constexpr uint32_t kBlockTokens = 64;
inline constexpr uint32_t kStoredTokens = 768;   // of a prefix: 12 blocks
inline constexpr uint32_t kSegmentBytes = 1024;  // stored prefix and exact recent window
inline constexpr uint32_t kPromptBytes = 800;    // 12 full blocks and a rest that is not stored
inline constexpr uint32_t kGeneratedBytes = 128;
// Registered with the tables and the profiles of klt.safetensors in the model's directory.
inline constexpr char kTunedProfile[] = "klt";

// One worker's orders.
struct WorkerOptions {
  std::string server;       // host:port
  std::string model_dir;    // of config.json and model.safetensors
  std::string prompt_file;  // kPromptBytes bytes
  std::string salt;         // keeps this run's blocks apart from every other's
  std::vector<std::string> profiles;
};

// Connects and waits until the server serves. As Client::Create and Client::WaitUntilServing.
[[nodiscard]] absl::StatusOr<std::unique_ptr<Client>> Connect(const std::string& server);

// The model is registered once for each profile: "tiny-lm/qjl3p", the directory's name and the
// profile's.
[[nodiscard]] std::string ModelBaseName(const std::string& model_dir);
[[nodiscard]] std::string ModelName(const std::string& model_dir, const std::string& profile);
[[nodiscard]] absl::StatusOr<ModelInfo> Register(Client* client, const std::string& model_dir,
                                                 const std::string& profile,
                                                 const example::KvShape& shape);

// NOT_FOUND when it cannot be read; INVALID_ARGUMENT when it has fewer than `min_bytes`.
[[nodiscard]] absl::StatusOr<std::vector<uint8_t>> ReadText(const std::string& path,
                                                            uint64_t min_bytes);

class Stopwatch {
 public:
  [[nodiscard]] double Milliseconds() const {
    return std::chrono::duration<double, std::milli>(Clock::now() - start_).count();
  }

 private:
  using Clock = std::chrono::steady_clock;
  Clock::time_point start_ = Clock::now();
};

}  // namespace sketchkv::demo
