#include "client/cpp/demo/measurement.h"

#include <unistd.h>

#include <chrono>
#include <fstream>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "client/cpp/demo/child_process.h"
#include "client/cpp/demo/interrupt.h"
#include "client/cpp/demo/progress.h"
#include "client/cpp/demo/setting.h"
#include "client/cpp/examples/stored_prefix.h"
#include "kernels/base/status_macros.h"

namespace sketchkv::demo {
namespace {

constexpr size_t kPromptEndBytes = 160;  // shown in the report

absl::StatusOr<uint64_t> UsedBytes(Client* client) {
  SKETCHKV_ASSIGN_OR_RETURN(const ServerStats stats, client->GetStats());
  uint64_t used = 0;
  for (const ServerStats::Tier& tier : stats.tiers) used += tier.used_bytes;
  return used;
}

// The median of the segments' figures and the worker's own.
double MedianWith(std::vector<double> numbers, double one_more) {
  numbers.push_back(one_more);
  return Median(std::move(numbers));
}

ProfileReport MakeProfileReport(const std::string& name, const ProfileTrial& trial, double put_ms,
                                const DecodeResult::Profile& decode) {
  ProfileReport report;
  report.profile = name;
  report.decoded = trial.decoded.Mean();
  report.attended = trial.attended.Mean();
  const uint64_t blocks = trial.blocks_put + kStoredTokens / kBlockTokens;  // and the prompt's
  report.raw_bytes = blocks * trial.model.raw_block_bytes;
  report.stored_bytes = blocks * trial.model.slot_bytes;
  report.key_bits = trial.model.key_bits;
  report.value_bits = trial.model.value_bits;
  report.all_bits = trial.model.bits_per_number;
  report.put_ms = MedianWith(trial.put_ms, put_ms);
  report.lookup_ms = MedianWith(trial.lookup_ms, decode.lookup_ms);
  report.get_ms = MedianWith(trial.get_ms, decode.get_ms);
  report.attend_ms_per_token = decode.attend_ms_per_token;
  report.num_prefixes = trial.put_ms.size() + 1;
  report.decoded_text = decode.decoded_text;
  report.attended_text = decode.attended_text;
  return report;
}

// Unlike that of any other run, on this machine or another.
std::string RunSalt() {
  const auto now = std::chrono::system_clock::now().time_since_epoch().count();
  char host[256] = "";
  gethostname(host, sizeof(host) - 1);
  return absl::StrCat("demo ", host, " ", getpid(), " ", now);
}

}  // namespace

Measurement::Measurement(const example::TinyLm& model, const DemoTexts& texts,
                         MeasurementOptions options)
    : model_(model), texts_(texts), options_(std::move(options)), salt_(RunSalt()) {
  worker_.server = options_.server;
  worker_.model_dir = options_.model_dir;
  worker_.prompt_file = options_.scratch_dir + "/prompt";
  worker_.salt = salt_ + " prompt";
  worker_.profiles = options_.profiles;
}

absl::StatusOr<Report> Measurement::Run() {
  std::ofstream prompt(worker_.prompt_file, std::ios::binary);
  prompt.write(reinterpret_cast<const char*>(texts_.prompt.data()),
               static_cast<std::streamsize>(texts_.prompt.size()));
  prompt.close();
  if (!prompt) return absl::InternalError(absl::StrCat("cannot write ", worker_.prompt_file));
  SKETCHKV_ASSIGN_OR_RETURN(const std::unique_ptr<Client> client, Connect(options_.server));
  absl::StatusOr<Report> report = MeasureAll(client.get());
  if (!options_.server_is_ours) DeleteBlocks(client.get());
  return report;
}

absl::StatusOr<Report> Measurement::MeasureAll(Client* client) {
  const size_t num_profiles = options_.profiles.size();
  SKETCHKV_ASSIGN_OR_RETURN(const uint64_t used_before, UsedBytes(client));
  SKETCHKV_ASSIGN_OR_RETURN(const std::string prefill_json, RunWorker("demo-prefill"));
  SKETCHKV_ASSIGN_OR_RETURN(const PrefillResult prefill,
                            ParsePrefillResult(prefill_json, num_profiles));
  SKETCHKV_ASSIGN_OR_RETURN(const std::string decode_json, RunWorker("demo-decode"));
  SKETCHKV_ASSIGN_OR_RETURN(const DecodeResult decode,
                            ParseDecodeResult(decode_json, num_profiles));
  Report report;
  report.model = ModelBaseName(options_.model_dir);
  report.setting = texts_.description;
  report.prompt_end.assign(texts_.prompt.end() - kPromptEndBytes, texts_.prompt.end());
  SKETCHKV_ASSIGN_OR_RETURN(const std::vector<ProfileTrial> trials,
                            RunTeacherForced(client, &report));
  for (size_t i = 0; i < num_profiles; ++i) {
    report.profiles.push_back(
        MakeProfileReport(options_.profiles[i], trials[i], prefill.put_ms[i], decode.profiles[i]));
  }
  if (options_.server_is_ours) {
    SKETCHKV_RETURN_IF_ERROR(CheckUsedBytes(client, used_before, report));
  }
  return report;
}

absl::StatusOr<std::string> Measurement::RunWorker(const std::string& command) const {
  ChildProcess::Options options;
  options.argv = {options_.program, command};
  const auto add = [&](const std::string& flag, const std::string& value) {
    options.argv.insert(options.argv.end(), {flag, value});
  };
  add("--server", worker_.server);
  add("--model-dir", worker_.model_dir);
  add("--prompt", worker_.prompt_file);
  add("--salt", worker_.salt);
  add("--profiles", absl::StrJoin(worker_.profiles, ","));
  options.capture_stdout = true;
  SKETCHKV_ASSIGN_OR_RETURN(const auto process, ChildProcess::Start(options));
  absl::StatusOr<std::string> result = process->Finish(Interrupted);
  if (result.ok() || absl::IsCancelled(result.status())) return result;
  const bool unreachable = process->HowEnded() == absl::StrCat("exit code ", kUnreachableExitCode);
  return absl::Status(unreachable ? absl::StatusCode::kUnavailable : result.status().code(),
                      absl::StrCat("the worker `", command, "` ", result.status().message()));
}

absl::StatusOr<std::vector<ProfileTrial>> Measurement::RunTeacherForced(Client* client,
                                                                        Report* report) const {
  std::vector<ProfileTrial> trials(options_.profiles.size());
  for (size_t i = 0; i < trials.size(); ++i) {
    SKETCHKV_ASSIGN_OR_RETURN(
        trials[i].model, client->GetModel(ModelName(options_.model_dir, options_.profiles[i])));
  }
  TeacherForced pass(&model_, client);
  Progress progress("teacher-forced pass",
                    static_cast<uint32_t>(texts_.segments.size() * (1 + trials.size())));
  for (size_t i = 0; i < texts_.segments.size(); ++i) {
    if (Interrupted()) return absl::CancelledError("interrupted");
    const auto on_step = [&](const std::string& what) {
      progress.Step(absl::StrCat("segment ", i + 1, ", ", what));
    };
    SKETCHKV_RETURN_IF_ERROR(pass.Run(texts_.segments[i], SegmentSalt(i), trials, on_step));
  }
  report->text_bytes = pass.exact().count();
  report->exact_bits_per_byte = pass.exact().Mean().bits_per_byte;
  return trials;
}

std::string Measurement::SegmentSalt(size_t index) const {
  return absl::StrCat(salt_, " segment ", index);
}

absl::Status Measurement::CheckUsedBytes(Client* client, uint64_t used_before,
                                         const Report& report) const {
  SKETCHKV_ASSIGN_OR_RETURN(const uint64_t used_after, UsedBytes(client));
  uint64_t stored = 0;
  for (const ProfileReport& profile : report.profiles) stored += profile.stored_bytes;
  if (used_after - used_before == stored) return absl::OkStatus();
  return absl::InternalError(absl::StrCat("used_bytes: grew by ", used_after - used_before,
                                          " on the server, the blocks put take ", stored));
}

void Measurement::DeleteBlocks(Client* client) const {
  std::vector<BlockId> roots = {
      example::HashChain(texts_.prompt, kBlockTokens, worker_.salt).front()};
  for (size_t i = 0; i < texts_.segments.size(); ++i) {
    roots.push_back(example::HashChain(texts_.segments[i], kBlockTokens, SegmentSalt(i)).front());
  }
  for (const std::string& profile : options_.profiles) {
    // A model that was never registered has nothing to delete; what cannot be reached is evicted.
    client->Delete(ModelName(options_.model_dir, profile), roots).status().IgnoreError();
  }
}

}  // namespace sketchkv::demo
