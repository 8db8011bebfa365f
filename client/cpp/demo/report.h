#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "client/cpp/demo/accuracy.h"

namespace sketchkv::demo {

// The bars of the demo's own.
inline constexpr double kMaxReadingGapBits = 0.001;  // bits per byte between the two readings
inline constexpr double kMaxRawKlBits = 1e-6;        // of `raw` from exact
inline constexpr double kMaxRawGapBits = 1e-5;       // bits per byte between `raw` and exact

struct ProfileReport {
  std::string profile;
  Reading decoded, attended;
  uint64_t raw_bytes = 0;                                   // of all blocks put, as bf16
  uint64_t stored_bytes = 0;                                // of the same blocks' slots
  double key_bits = 0.0, value_bits = 0.0, all_bits = 0.0;  // exact effective bits per number
  // Of one prefix, medians over `num_prefixes`; of one generated token, mean over them.
  double put_ms = 0.0, lookup_ms = 0.0, get_ms = 0.0, attend_ms_per_token = 0.0;
  uint64_t num_prefixes = 0;
  std::string decoded_text, attended_text;  // generated
};

struct Report {
  std::string model;
  std::string setting;      // what was run, for people
  uint64_t text_bytes = 0;  // predicted and counted in each reading
  double exact_bits_per_byte = 0.0;
  std::string prompt_end;  // the end of what the generated texts continue
  std::vector<ProfileReport> profiles;
};

// What does not hold, one sentence each; empty when all is well. A figure that is no number breaks
// its bar.
[[nodiscard]] std::vector<std::string> BrokenBars(const Report& report);

// The format of `--json`: exactly the fields the README's table names.
[[nodiscard]] std::string ReportJson(const Report& report);
// For people: one table a profile.
[[nodiscard]] std::string ReportText(const Report& report);

// 0 for none.
[[nodiscard]] double Median(std::vector<double> numbers);

}  // namespace sketchkv::demo
