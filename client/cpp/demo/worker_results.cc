#include <nlohmann/json.hpp>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "client/cpp/demo/workers.h"
#include "kernels/base/status_macros.h"

// How a worker's result crosses to the demo. Generated text is hexadecimal: it need not be UTF-8.
namespace sketchkv::demo {
namespace {

using nlohmann::json;

absl::StatusOr<json> ParseArray(const std::string& text, size_t num_profiles) {
  json parsed = json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!parsed.is_array() || parsed.size() != num_profiles) {
    return absl::InvalidArgumentError(
        absl::StrCat("a worker's result of ", text.size(), " bytes is no list of ", num_profiles));
  }
  return parsed;
}

absl::Status ReadField(const json& object, const char* name, double* value) {
  const auto field = object.find(name);
  if (field == object.end() || !field->is_number()) {
    return absl::InvalidArgumentError(absl::StrCat("a worker's result has no number ", name));
  }
  *value = field->get<double>();
  return absl::OkStatus();
}

absl::Status ReadField(const json& object, const char* name, std::string* bytes) {
  const auto field = object.find(name);
  if (field == object.end() || !field->is_string()) {
    return absl::InvalidArgumentError(absl::StrCat("a worker's result has no text ", name));
  }
  *bytes = absl::HexStringToBytes(field->get_ref<const std::string&>());
  return absl::OkStatus();
}

}  // namespace

std::string ToJson(const PrefillResult& result) {
  json list = json::array();
  for (const double put_ms : result.put_ms) list.push_back({{"put_ms", put_ms}});
  return list.dump();
}

std::string ToJson(const DecodeResult& result) {
  json list = json::array();
  for (const DecodeResult::Profile& profile : result.profiles) {
    list.push_back({{"lookup_ms", profile.lookup_ms},
                    {"get_ms", profile.get_ms},
                    {"attend_ms_per_token", profile.attend_ms_per_token},
                    {"decoded_text", absl::BytesToHexString(profile.decoded_text)},
                    {"attended_text", absl::BytesToHexString(profile.attended_text)}});
  }
  return list.dump();
}

absl::StatusOr<PrefillResult> ParsePrefillResult(const std::string& text, size_t num_profiles) {
  SKETCHKV_ASSIGN_OR_RETURN(const json list, ParseArray(text, num_profiles));
  PrefillResult result;
  for (const json& item : list) {
    SKETCHKV_RETURN_IF_ERROR(ReadField(item, "put_ms", &result.put_ms.emplace_back()));
  }
  return result;
}

absl::StatusOr<DecodeResult> ParseDecodeResult(const std::string& text, size_t num_profiles) {
  SKETCHKV_ASSIGN_OR_RETURN(const json list, ParseArray(text, num_profiles));
  DecodeResult result;
  for (const json& item : list) {
    DecodeResult::Profile& profile = result.profiles.emplace_back();
    SKETCHKV_RETURN_IF_ERROR(ReadField(item, "lookup_ms", &profile.lookup_ms));
    SKETCHKV_RETURN_IF_ERROR(ReadField(item, "get_ms", &profile.get_ms));
    SKETCHKV_RETURN_IF_ERROR(ReadField(item, "attend_ms_per_token", &profile.attend_ms_per_token));
    SKETCHKV_RETURN_IF_ERROR(ReadField(item, "decoded_text", &profile.decoded_text));
    SKETCHKV_RETURN_IF_ERROR(ReadField(item, "attended_text", &profile.attended_text));
  }
  return result;
}

}  // namespace sketchkv::demo
