#include "client/cpp/cli/model_text.h"

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/cpp/cli/element.h"
#include "client/cpp/cli/profile_names.h"

namespace sketchkv::cli {
namespace {

nlohmann::ordered_json LayoutJson(const CacheLayout& layout) {
  return {{"num_layers", layout.num_layers},
          {"num_kv_heads", layout.num_kv_heads},
          {"head_dim", layout.head_dim},
          {"value_dim", layout.value_dim},
          {"block_tokens", layout.block_tokens},
          {"key_dtype", ElementName(layout.key_type)},
          {"value_dtype", ElementName(layout.value_type)},
          {"key_scale", layout.key_scale},
          {"value_scale", layout.value_scale},
          {"value_source", layout.values_are_key_prefix ? "key_prefix" : "separate"}};
}

// Null for a choice that does not apply.
nlohmann::ordered_json NameJson(absl::string_view name) {
  if (name.empty()) return nullptr;
  return std::string(name);
}

nlohmann::ordered_json ProfileJson(const LayerProfile& profile) {
  return {{"name", profile.name},
          {"version", profile.version},
          {"layer_begin", profile.layer_begin},
          {"layer_count", profile.layer_count},
          {"keys", NameJson(NameOf(kKeyNames, profile.key_codec))},
          {"sign_bits", profile.sign_bits},
          {"code_bits", profile.code_bits},
          {"key_row_bits", profile.key_row_bits},
          {"projection", NameJson(NameOf(kProjectionNames, profile.projection))},
          {"scale", NameJson(NameOf(kScaleNames, profile.scale_rule))},
          {"center", NameJson(NameOf(kCenterNames, profile.centering))},
          {"num_outliers", profile.num_outliers},
          {"outlier_source", NameJson(NameOf(kOutlierSourceNames, profile.outlier_source))},
          {"values", NameJson(NameOf(kValueNames, profile.value_codec))},
          {"value_scale", NameJson(NameOf(kScaleNames, profile.value_scale_rule))},
          {"value_bits", profile.value_bits},
          {"value_row_bits", profile.value_row_bits},
          {"cell_bytes", profile.cell_bytes}};
}

std::string KeysText(const LayerProfile& profile) {
  std::string text = "raw";
  if (profile.key_codec == LayerProfile::KeyCodec::kSketch) {
    text = absl::StrCat(profile.sign_bits, " sign bits");
  } else if (profile.key_codec == LayerProfile::KeyCodec::kCodes) {
    text = profile.code_bits > 0 ? absl::StrCat(profile.code_bits, "-bit codes")
                                 : absl::StrCat("codes of ", profile.key_row_bits, " bits a key");
  }
  if (profile.scale_rule == ProfileSpec::ScaleRule::kLeastSquares) text += ", least-squares scale";
  if (profile.centering && *profile.centering != ProfileSpec::Centering::kNone) {
    absl::StrAppend(&text, ", centered by the ", NameOf(kCenterNames, profile.centering));
  }
  if (profile.num_outliers > 0) {
    absl::StrAppend(&text, ", ", profile.num_outliers, " outliers by the ",
                    NameOf(kOutlierSourceNames, profile.outlier_source));
  }
  return text;
}

std::string ValuesText(const LayerProfile& profile) {
  std::string text(NameOf(kValueNames, profile.value_codec));
  if (profile.value_bits > 0) absl::StrAppend(&text, ", ", profile.value_bits, " bits");
  if (profile.value_row_bits > 0) {
    absl::StrAppend(&text, ", ", profile.value_row_bits, " bits a value");
  }
  if (profile.value_scale_rule == ProfileSpec::ScaleRule::kLeastSquares) {
    text += ", least-squares scale";
  }
  return text;
}

}  // namespace

nlohmann::ordered_json ModelJson(const ModelInfo& model) {
  nlohmann::ordered_json profiles = nlohmann::ordered_json::array();
  for (const LayerProfile& profile : model.profiles) profiles.push_back(ProfileJson(profile));
  return {
      {"name", model.name},
      {"fingerprint", absl::BytesToHexString(model.fingerprint)},
      {"tables_digest", NameJson(absl::BytesToHexString(model.tables_digest))},
      {"layout", LayoutJson(model.layout)},
      {"profiles", profiles},
      {"slot_bytes", model.slot_bytes},
      {"raw_block_bytes", model.raw_block_bytes},
      {"bits_per_number",
       {{"keys", model.key_bits}, {"values", model.value_bits}, {"all", model.bits_per_number}}}};
}

std::string ModelText(const ModelInfo& model) {
  const CacheLayout& layout = model.layout;
  std::string text = absl::StrFormat(
      "%s: %d layers, %d kv heads, head_dim %d, value_dim %d, blocks of %d tokens, %s/%s\n"
      "  %d bytes a block (raw %d), %.3f bits a number (keys %.3f, values %.3f)\n",
      model.name, layout.num_layers, layout.num_kv_heads, layout.head_dim, layout.value_dim,
      layout.block_tokens, ElementName(layout.key_type), ElementName(layout.value_type),
      model.slot_bytes, model.raw_block_bytes, model.bits_per_number, model.key_bits,
      model.value_bits);
  for (const LayerProfile& profile : model.profiles) {
    absl::StrAppendFormat(&text, "  layers %d to %d: %s; keys: %s; values: %s\n",
                          profile.layer_begin, profile.layer_begin + profile.layer_count - 1,
                          profile.name, KeysText(profile), ValuesText(profile));
  }
  if (!model.tables_digest.empty()) {
    absl::StrAppend(&text, "  tables ", absl::BytesToHexString(model.tables_digest), "\n");
  }
  return text;
}

}  // namespace sketchkv::cli
