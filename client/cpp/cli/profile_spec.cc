#include "client/cpp/cli/profile_spec.h"

#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "client/cpp/cli/profile_names.h"
#include "kernels/base/status_macros.h"

namespace sketchkv::cli {
namespace {

absl::Status Bad(absl::string_view key, absl::string_view value) {
  return absl::InvalidArgumentError(
      absl::StrCat("profile knob ", key, "=", value, " is not valid"));
}

absl::Status SetLayers(absl::string_view value, ProfileSpec* spec) {
  const std::pair<absl::string_view, absl::string_view> parts =
      absl::StrSplit(value, absl::MaxSplits('+', 1));
  if (!absl::SimpleAtoi(parts.first, &spec->layer_begin)) return Bad("layers", value);
  if (!parts.second.empty() && !absl::SimpleAtoi(parts.second, &spec->layer_count)) {
    return Bad("layers", value);
  }
  return absl::OkStatus();
}

template <typename Choice, size_t N>
absl::Status SetChoice(absl::string_view key, absl::string_view value,
                       const absl::string_view (&names)[N], std::optional<Choice>* choice) {
  *choice = ChoiceNamed<Choice>(names, value);
  return choice->has_value() ? absl::OkStatus() : Bad(key, value);
}

absl::Status SetKnob(absl::string_view key, absl::string_view value, ProfileSpec* spec) {
  if (key == "layers") return SetLayers(value, spec);
  if (key == "projection") return SetChoice(key, value, kProjectionNames, &spec->projection);
  if (key == "scale") return SetChoice(key, value, kScaleNames, &spec->scale_rule);
  if (key == "center") return SetChoice(key, value, kCenterNames, &spec->centering);
  if (key == "outlier_source") {
    return SetChoice(key, value, kOutlierSourceNames, &spec->outlier_source);
  }
  if (key == "value_scale") return SetChoice(key, value, kScaleNames, &spec->value_scale_rule);
  if (key == "values") return SetChoice(key, value, kValueNames, &spec->value_codec);
  if (key == "seed") {
    uint64_t seed = 0;
    if (!absl::SimpleAtoi(value, &seed)) return Bad(key, value);
    spec->seed = seed;
    return absl::OkStatus();
  }
  uint32_t number = 0;
  if (!absl::SimpleAtoi(value, &number)) return Bad(key, value);
  if (key == "sign_bits") {
    spec->sign_bits = number;
  } else if (key == "outliers") {
    spec->num_outliers = number;
  } else if (key == "outlier_sign_bits") {
    spec->outlier_sign_bits = number;
  } else if (key == "value_bits") {
    spec->value_bits = number;
  } else if (key == "value_group_size") {
    spec->value_group_size = number;
  } else {
    return Bad(key, value);
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<ProfileSpec> ParseProfileSpec(const std::string& text) {
  const std::pair<absl::string_view, absl::string_view> parts =
      absl::StrSplit(text, absl::MaxSplits(':', 1));
  ProfileSpec spec;
  spec.name = std::string(parts.first);
  for (const absl::string_view knob : absl::StrSplit(parts.second, ',', absl::SkipEmpty())) {
    const std::pair<absl::string_view, absl::string_view> pair =
        absl::StrSplit(knob, absl::MaxSplits('=', 1));
    SKETCHKV_RETURN_IF_ERROR(SetKnob(pair.first, pair.second, &spec));
  }
  return spec;
}

}  // namespace sketchkv::cli
