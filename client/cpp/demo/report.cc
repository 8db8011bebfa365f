#include "client/cpp/demo/report.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace sketchkv::demo {
namespace {

// Adds a sentence unless |a - b| <= bound (which a NaN never is).
void CheckGap(const std::string& what, double a, double b, double bound,
              std::vector<std::string>* broken) {
  if (std::fabs(a - b) <= bound) return;
  broken->push_back(absl::StrFormat("%s: %.8f and %.8f differ by more than %g", what, a, b, bound));
}

nlohmann::ordered_json ReadingJson(const Reading& reading) {
  return {{"bits_per_byte", reading.bits_per_byte},
          {"kl_bits", reading.kl_bits},
          {"top1_agreement", reading.top1_agreement}};
}

std::string ReadingRow(const char* name, const Reading& reading) {
  return absl::StrFormat("  %-10s %15.5f %22.7f %18.2f %%\n", name, reading.bits_per_byte,
                         reading.kl_bits, 100.0 * reading.top1_agreement);
}

// Printable on any terminal, each line marked.
std::string Quoted(const std::string& text) {
  std::string quoted = "    | ";
  for (const char c : text) {
    if (c == '\n') {
      quoted += "\n    | ";
    } else if (absl::ascii_isprint(static_cast<unsigned char>(c))) {
      quoted += c;
    } else {
      absl::StrAppendFormat(&quoted, "\\x%02x", static_cast<unsigned char>(c));
    }
  }
  return quoted + "\n";
}

std::string GeneratedText(const ProfileReport& profile) {
  const std::string &a = profile.decoded_text, &b = profile.attended_text;
  if (a == b) {
    return absl::StrCat("  generated greedily, the same ", a.size(), " bytes from both readings:\n",
                        Quoted(a));
  }
  const auto differ = std::mismatch(a.begin(), a.end(), b.begin(), b.end()).first - a.begin();
  return absl::StrCat("  generated greedily, the readings differ from byte ", differ,
                      " on; decoded:\n", Quoted(a), "  attended:\n", Quoted(b));
}

std::string ProfileTable(const ProfileReport& profile, double exact_bits_per_byte) {
  std::string text = absl::StrFormat(
      "\n%s: %.3f bits per number (keys %.3f, values %.3f); %u bytes as bf16, %u stored: ratio "
      "%.2f\n",
      profile.profile, profile.all_bits, profile.key_bits, profile.value_bits, profile.raw_bytes,
      profile.stored_bytes,
      static_cast<double>(profile.raw_bytes) / static_cast<double>(profile.stored_bytes));
  absl::StrAppendFormat(&text, "  %-10s %15s %22s %20s\n", "reading", "bits per byte",
                        "KL from exact, bits", "top-1 agreement");
  absl::StrAppendFormat(&text, "  %-10s %15.5f\n", "exact", exact_bits_per_byte);
  text += ReadingRow("decoded", profile.decoded);
  text += ReadingRow("attended", profile.attended);
  absl::StrAppendFormat(
      &text,
      "  ms, median of %u prefixes: put with packing %.1f, lookup %.2f, get with unpacking %.1f; "
      "attend per\n  generated token %.2f\n",
      profile.num_prefixes, profile.put_ms, profile.lookup_ms, profile.get_ms,
      profile.attend_ms_per_token);
  return text + GeneratedText(profile);
}

}  // namespace

std::vector<std::string> BrokenBars(const Report& report) {
  std::vector<std::string> broken;
  for (const ProfileReport& profile : report.profiles) {
    CheckGap(profile.profile + ": bits per byte decoded and attended",
             profile.decoded.bits_per_byte, profile.attended.bits_per_byte, kMaxReadingGapBits,
             &broken);
    if (profile.profile != "raw") continue;
    for (const Reading& reading : {profile.decoded, profile.attended}) {
      CheckGap("raw: KL from exact and none", reading.kl_bits, 0.0, kMaxRawKlBits, &broken);
      CheckGap("raw: bits per byte and exact", reading.bits_per_byte, report.exact_bits_per_byte,
               kMaxRawGapBits, &broken);
    }
  }
  return broken;
}

std::string ReportJson(const Report& report) {
  nlohmann::ordered_json json = {{"model", report.model},
                                 {"text_bytes", report.text_bytes},
                                 {"exact", {{"bits_per_byte", report.exact_bits_per_byte}}},
                                 {"profiles", nlohmann::ordered_json::array()}};
  for (const ProfileReport& profile : report.profiles) {
    json["profiles"].push_back(
        {{"profile", profile.profile},
         {"decoded", ReadingJson(profile.decoded)},
         {"attended", ReadingJson(profile.attended)},
         {"raw_bytes", profile.raw_bytes},
         {"stored_bytes", profile.stored_bytes},
         {"bits_per_number",
          {{"keys", profile.key_bits}, {"values", profile.value_bits}, {"all", profile.all_bits}}},
         {"ms",
          {{"put", profile.put_ms},
           {"lookup", profile.lookup_ms},
           {"get", profile.get_ms},
           {"attend_per_token", profile.attend_ms_per_token}}}});
  }
  return json.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
}

std::string ReportText(const Report& report) {
  std::string text = absl::StrFormat("%s: %s\n%u bytes predicted in each reading\n", report.model,
                                     report.setting, report.text_bytes);
  for (const ProfileReport& profile : report.profiles) {
    text += ProfileTable(profile, report.exact_bits_per_byte);
  }
  absl::StrAppend(&text, "\nthe generated texts continue:\n", Quoted(report.prompt_end));
  return text;
}

double Median(std::vector<double> numbers) {
  if (numbers.empty()) return 0.0;
  const auto middle = numbers.begin() + static_cast<ptrdiff_t>(numbers.size() / 2);
  std::nth_element(numbers.begin(), middle, numbers.end());
  if (numbers.size() % 2 == 1) return *middle;
  return (*std::max_element(numbers.begin(), middle) + *middle) / 2;
}

}  // namespace sketchkv::demo
