#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "client/cpp/demo/setting.h"

// The two workers. Each runs in a process of its own and shares nothing with the other but
// sketchkv; its result crosses to the demo as JSON on its stdout.
namespace sketchkv::demo {

// What a worker exits with when the server cannot be reached, as every command does.
inline constexpr int kUnreachableExitCode = 4;

struct PrefillResult {
  std::vector<double> put_ms;  // one a profile: all blocks of the prompt
};

struct DecodeResult {
  struct Profile {
    double lookup_ms = 0.0;            // of the whole prefix, with a lease
    double get_ms = 0.0;               // of the whole prefix, decoded
    double attend_ms_per_token = 0.0;  // all layers of one generated token, mean
    std::string decoded_text;          // generated from each reading, kGeneratedBytes bytes
    std::string attended_text;
  };
  std::vector<Profile> profiles;  // in the order of WorkerOptions::profiles
};

// Runs the prompt once and puts its full blocks under each profile's model, which it registers.
[[nodiscard]] absl::StatusOr<PrefillResult> RunPrefill(const WorkerOptions& options);

// Finds the prompt's stored prefix, computes only the tokens after it and continues the text
// greedily, once with the blocks fetched and decoded, once attended where they lie.
// FAILED_PRECONDITION when less than the whole prefix is stored.
[[nodiscard]] absl::StatusOr<DecodeResult> RunDecode(const WorkerOptions& options);

[[nodiscard]] std::string ToJson(const PrefillResult& result);
[[nodiscard]] std::string ToJson(const DecodeResult& result);
// INVALID_ARGUMENT when a field is missing or there are not `num_profiles` of it.
[[nodiscard]] absl::StatusOr<PrefillResult> ParsePrefillResult(const std::string& json,
                                                               size_t num_profiles);
[[nodiscard]] absl::StatusOr<DecodeResult> ParseDecodeResult(const std::string& json,
                                                             size_t num_profiles);

}  // namespace sketchkv::demo
