#include "client/cpp/demo/demo_run.h"

#include <algorithm>
#include <filesystem>
#include <memory>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "client/cpp/demo/demo_texts.h"
#include "client/cpp/demo/interrupt.h"
#include "client/cpp/demo/measurement.h"
#include "client/cpp/demo/server_process.h"
#include "client/cpp/demo/setting.h"
#include "client/cpp/examples/tiny_lm.h"
#include "kernels/base/status_macros.h"

namespace sketchkv::demo {
namespace {

constexpr uint64_t kMinHostBytes = uint64_t{64} << 20;

// Room for every block raw, twice: nothing is evicted while the demo looks.
uint64_t HostBytes(const example::TinyLmConfig& config, size_t prefixes, size_t profiles) {
  const uint64_t token_bytes = uint64_t{config.layers} * config.kv_heads * config.head_dim * 2 *
                               ElementBytes(ElementType::kBf16);
  return std::max(kMinHostBytes, 2 * token_bytes * kStoredTokens * prefixes * profiles);
}

}  // namespace

std::string ProgramPath() {
  std::error_code error;
  return std::filesystem::read_symlink("/proc/self/exe", error).string();
}

absl::StatusOr<std::string> FindModelDir() {
  const std::filesystem::path installed =
      std::filesystem::path(ProgramPath()).parent_path() / "../share/sketchkv/tiny-lm";
  for (const std::filesystem::path& dir : {installed, std::filesystem::path(SKETCHKV_DEMO_DATA)}) {
    std::error_code error;
    if (std::filesystem::exists(dir / "model.safetensors", error)) {
      return dir.lexically_normal().string();
    }
  }
  return absl::NotFoundError(absl::StrCat("no model.safetensors in ", installed.string(), " or ",
                                          SKETCHKV_DEMO_DATA, "; name its folder by --model-dir"));
}

absl::StatusOr<Report> RunDemo(const DemoOptions& asked) {
  CatchInterrupts();
  DemoOptions options = asked;
  for (const std::string& name : options.profiles) {
    if (std::count(options.profiles.begin(), options.profiles.end(), name) > 1) {
      return absl::InvalidArgumentError(absl::StrCat("profiles: ", name, " is named twice"));
    }
  }
  if (options.model_dir.empty()) {
    SKETCHKV_ASSIGN_OR_RETURN(options.model_dir, FindModelDir());
  }
  SKETCHKV_ASSIGN_OR_RETURN(const DemoTexts texts, ReadTexts(options));
  SKETCHKV_ASSIGN_OR_RETURN(const auto model, example::TinyLm::Load(options.model_dir));
  SKETCHKV_ASSIGN_OR_RETURN(const auto scratch, TemporaryDirectory::Create());
  MeasurementOptions measurement;
  measurement.program = ProgramPath();
  measurement.model_dir = options.model_dir;
  measurement.scratch_dir = scratch->path();
  measurement.server = options.server;
  measurement.profiles = options.profiles;
  std::unique_ptr<ServerProcess> own_server;
  if (options.server.empty()) {
    const auto dir = std::filesystem::path(measurement.program).parent_path();
    const uint64_t host_bytes =
        HostBytes(model->config(), texts.segments.size() + 1, options.profiles.size());
    SKETCHKV_ASSIGN_OR_RETURN(
        own_server, ServerProcess::Start((dir / "sketchkvd").string(), host_bytes, scratch->path(),
                                         Interrupted));
    measurement.server = own_server->address();
    measurement.server_is_ours = true;
  }
  absl::StatusOr<Report> report = Measurement(*model, texts, measurement).Run();
  // Calls that an interrupt broke off fail in many ways: what the user did is the reason.
  if (Interrupted()) return absl::CancelledError("interrupted");
  if (report.ok() && own_server != nullptr) SKETCHKV_RETURN_IF_ERROR(own_server->Stop());
  return report;
}

}  // namespace sketchkv::demo
