#include "client/cpp/demo/demo_command.h"

#include <algorithm>
#include <cstddef>
#include <cstdio>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "client/cpp/demo/demo_run.h"
#include "client/cpp/demo/report.h"
#include "client/cpp/demo/workers.h"
#include "client/cpp/files/mapped_file.h"

namespace sketchkv::demo {
namespace {

// 1 and 4 as the other commands have them.
constexpr int kFailed = 1, kUnreachable = kUnreachableExitCode, kBarBroken = 5, kInterrupted = 130;
constexpr char kFooter[] =
    "Exit codes: 0 done, and all bars hold; 1 an error; 4 the server cannot be reached; 5 "
    "measured, "
    "but a bar\ndoes not hold; 130 interrupted.";

int Fail(const std::string& command, const absl::Status& status) {
  std::fprintf(stderr, "sketchkv %s: %s\n", command.c_str(), status.ToString().c_str());
  if (absl::IsCancelled(status)) return kInterrupted;
  if (absl::IsUnavailable(status) || absl::IsDeadlineExceeded(status)) return kUnreachable;
  return kFailed;
}

int RunDemoCommand(const DemoOptions& options, const std::string& json_file) {
  const absl::StatusOr<Report> report = RunDemo(options);
  if (!report.ok()) return Fail("demo", report.status());
  std::fputs(ReportText(*report).c_str(), stdout);
  if (!json_file.empty()) {
    const std::string json = ReportJson(*report);
    const std::span<const std::byte> bytes = std::as_bytes(std::span(json));
    const absl::Status written = WriteFileAtomically(json_file, {&bytes, 1});
    if (!written.ok()) return Fail("demo", written);
  }
  const std::vector<std::string> broken = BrokenBars(*report);
  for (const std::string& bar : broken) {
    std::fprintf(stderr, "sketchkv demo: does not hold: %s\n", bar.c_str());
  }
  if (!broken.empty()) return kBarBroken;
  std::printf("\nall bars hold: the readings agree within %g bits per byte%s\n", kMaxReadingGapBits,
              std::count(options.profiles.begin(), options.profiles.end(), "raw") > 0
                  ? ", raw equals exact"
                  : "");
  return 0;
}

// Adds a worker's command, hidden from the help, whose result goes to stdout.
template <typename RunWorker>
void AddWorker(CLI::App& app, const std::string& name, RunWorker run, int* exit_code) {
  CLI::App* command = app.add_subcommand(name)->group("");
  const auto options = std::make_shared<WorkerOptions>();
  command->add_option("--server", options->server)->required();
  command->add_option("--model-dir", options->model_dir)->required();
  command->add_option("--prompt", options->prompt_file)->required();
  command->add_option("--salt", options->salt)->required();
  command->add_option("--profiles", options->profiles)->required()->delimiter(',');
  command->callback([name, options, run, exit_code] {
    const auto result = run(*options);
    if (!result.ok()) {
      *exit_code = Fail(name, result.status());
      return;
    }
    std::fputs(ToJson(*result).c_str(), stdout);
    *exit_code = 0;
  });
}

}  // namespace

void AddDemoCommand(CLI::App& app, int* exit_code) {
  CLI::App* demo = app.add_subcommand(
      "demo",
      "A small language model prefills in one process and decodes in another, its cache in "
      "sketchkv between them");
  const auto options = std::make_shared<DemoOptions>();
  const auto json_file = std::make_shared<std::string>();
  demo->add_option("--server", options->server,
                   "host:port of a running sketchkvd (default: start one and stop it again)");
  demo->add_option("--json", *json_file, "write the report to this file as JSON");
  demo->add_option("--text", options->text_file,
                   "a text of your own, at least 1024 bytes (default: the model's held-out and "
                   "sampled texts)");
  demo->add_option("--model-dir", options->model_dir,
                   "folder of config.json, model.safetensors and the texts");
  demo->add_option("--segments", options->segments, "segments of 1024 bytes to measure over")
      ->check(CLI::Range(1, 1000000))
      ->capture_default_str();
  demo->add_option("--profiles", options->profiles, "codec profiles to compare")
      ->delimiter(',')
      ->capture_default_str();
  demo->footer(kFooter);
  demo->callback([&app, options, json_file, exit_code] {
    // `sketchkv --server ADDR demo` means the same as `sketchkv demo --server ADDR`.
    const CLI::Option* server = app.get_option_no_throw("--server");
    if (options->server.empty() && server != nullptr && server->count() > 0) {
      options->server = server->as<std::string>();
    }
    *exit_code = RunDemoCommand(*options, *json_file);
  });
  AddWorker(app, "demo-prefill", RunPrefill, exit_code);
  AddWorker(app, "demo-decode", RunDecode, exit_code);
}

}  // namespace sketchkv::demo
