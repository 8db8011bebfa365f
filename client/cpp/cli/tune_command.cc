#include "client/cpp/cli/tune_command.h"

#include <algorithm>
#include <iostream>
#include <memory>
#include <string>
#include <thread>
#include <utility>

#include "absl/strings/str_format.h"
#include "client/cpp/cli/array_file.h"
#include "client/cpp/cli/profile_spec.h"
#include "client/cpp/cli/progress_bar.h"
#include "client/cpp/files/mapped_file.h"
#include "client/cpp/tune/report.h"
#include "client/cpp/tune/samples.h"
#include "client/cpp/tune/tune.h"
#include "kernels/base/status_macros.h"

namespace sketchkv::cli {
namespace {

constexpr char kFooter[] =
    "--samples is a safetensors file with layers.{l}.keys [tokens, kv_heads, head_dim],\n"
    "layers.{l}.queries [tokens, q_heads, head_dim] and layers.{l}.values [tokens, kv_heads, "
    "dim],\n"
    "F32, F16 or BF16, keys and queries as they meet (after RoPE), and sequence_starts I64 where\n"
    "several sequences stand one after another. The last part of the tokens makes no tables: "
    "errors\n"
    "are measured on it, with the real codec. --out is read by `models register --tables`.";

struct TuneFiles {
  std::string samples, out, json;
};

absl::Status CheckProfiles(const std::vector<std::string>& profiles) {
  for (const std::string& text : profiles) {
    const absl::StatusOr<ProfileSpec> spec = ParseProfileSpec(text);
    if (!spec.ok()) return UsageError(spec.status().message());
  }
  return absl::OkStatus();
}

absl::StatusOr<tune::TuneResult> TuneWithProgress(const tune::Samples& samples,
                                                  const tune::TuneOptions& options) {
  std::unique_ptr<ProgressBar> bar;  // one for each phase
  return tune::Tune(samples, options, [&bar](uint64_t done, uint64_t total) {
    if (done == 1) bar = std::make_unique<ProgressBar>("heads", total);
    bar->Update(done);
  });
}

absl::StatusOr<CommandOutput> RunTune(const TuneFiles& files, tune::TuneOptions options) {
  if (!options.target_error && !options.target_bits && !options.key_row_bits) {
    return UsageError("one of --target-error, --target-bits and --key-row-bits is required");
  }
  SKETCHKV_RETURN_IF_ERROR(CheckProfiles(options.profiles));
  const absl::StatusOr<tune::Samples> samples = tune::Samples::Open(files.samples);
  if (!samples.ok()) return FileError(samples.status());
  options.num_threads = std::max(1u, std::thread::hardware_concurrency());
  SKETCHKV_ASSIGN_OR_RETURN(const tune::TuneResult result, TuneWithProgress(*samples, options));
  for (const std::string& warning : result.warnings) {
    std::cerr << "sketchkv: warning: " << warning << std::endl;
  }
  SKETCHKV_RETURN_IF_ERROR(FileError(WriteTablesFile(files.out, result.tables)));
  const std::string json = tune::ReportJson(result);
  if (!files.json.empty()) {
    const std::span<const std::byte> bytes = std::as_bytes(std::span(json));
    SKETCHKV_RETURN_IF_ERROR(FileError(WriteFileAtomically(files.json, {&bytes, 1})));
  }
  return CommandOutput{nlohmann::ordered_json::parse(json),
                       absl::StrFormat("%stables in %s\n", tune::ReportText(result), files.out)};
}

}  // namespace

void AddTuneCommand(CLI::App& app, CommandRunner* runner) {
  const auto files = std::make_shared<TuneFiles>();
  const auto options = std::make_shared<tune::TuneOptions>();
  CLI::App* command = app.add_subcommand(
      "tune", "Tables and profiles for a model from samples of its own keys, queries and values.");
  command->add_option("--samples", files->samples, "FILE.safetensors to learn from")->required();
  command->add_option("--out", files->out, "FILE.safetensors to write")->required();
  command->add_option("--json", files->json, "Write everything that was measured to this file");
  CLI::Option* error = command->add_option("--target-error", options->target_error,
                                           "At most this error in each layer, at the fewest bits");
  CLI::Option* bits = command->add_option("--target-bits", options->target_bits,
                                          "At most so many bits a number, at the least error");
  CLI::Option* keys = command->add_option("--key-row-bits", options->key_row_bits,
                                          "klt with just so many stored bits a key, in all layers");
  CLI::Option* values =
      command->add_option("--value-row-bits", options->value_row_bits, "Likewise a value");
  error->check(CLI::PositiveNumber)->excludes(bits)->excludes(keys)->excludes(values);
  bits->check(CLI::PositiveNumber)->excludes(keys)->excludes(values);
  keys->needs(values);
  values->needs(keys);
  command->add_option("--profile", options->profiles,
                      "Candidates in place of the usual ones (qjl2p, qjl3p, qjl4p about the mean, "
                      "klt): what `models register` takes; may be repeated");
  command->add_option("--block-tokens", options->block_tokens, "1 to 1024")->capture_default_str();
  command->add_option("--holdout", options->holdout, "Part of the tokens to measure on")
      ->check(CLI::Range(0.01, 0.99))
      ->capture_default_str();
  command->footer(kFooter);
  command->callback(
      [files, options, runner] { runner->Run([&] { return RunTune(*files, *options); }); });
}

}  // namespace sketchkv::cli
