#include "service/engine/model_fields.h"

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"

namespace sketchkv {
namespace {

std::string FloatBits(float value) {
  uint32_t bits = 0;
  std::memcpy(&bits, &value, sizeof(bits));
  return absl::StrCat(value, " (0x", absl::Hex(bits), ")");
}

template <typename Value>
void Add(std::string field, const Value& value, ModelFields* fields) {
  fields->emplace_back(std::move(field), absl::StrCat(value));
}

void AddProfile(size_t layer, const CodecProfile& profile, ModelFields* fields) {
  const auto add = [&](const char* knob, const auto& value) {
    Add(absl::StrCat("profiles[layer ", layer, "].", knob), value, fields);
  };
  add("name", profile.name);
  add("version", profile.version);
  add("key_codec", static_cast<int>(profile.key_codec));
  add("sign_bits", profile.sign_bits);
  add("code_bits", profile.code_bits);
  add("key_row_bits", profile.key_row_bits);
  add("projection", static_cast<int>(profile.projection));
  add("scale_rule", static_cast<int>(profile.scale_rule));
  add("centering", static_cast<int>(profile.centering));
  add("outlier_method", static_cast<int>(profile.outlier_method));
  add("outlier_source", static_cast<int>(profile.outlier_source));
  add("num_outliers", profile.num_outliers);
  add("outlier_sign_bits", profile.outlier_sign_bits);
  add("outlier_group_tokens", profile.outlier_group_tokens);
  add("value_codec", static_cast<int>(profile.value_codec));
  add("value_scale_rule", static_cast<int>(profile.value_scale_rule));
  add("value_bits", profile.value_bits);
  add("value_row_bits", profile.value_row_bits);
  add("value_group_size", profile.value_group_size);
  add("seed", profile.seed);
}

}  // namespace

ModelFields DescribeModel(const std::string& name, const KvLayout& layout,
                          const std::vector<CodecProfile>& profiles,
                          const std::optional<Digest128>& tables_digest) {
  ModelFields fields;
  const auto add = [&fields](const char* field, const auto& value) { Add(field, value, &fields); };
  add("name", name);
  add("format_version", kFormatVersion);
  add("layout.num_layers", layout.num_layers);
  add("layout.num_kv_heads", layout.num_kv_heads);
  add("layout.head_dim", layout.head_dim);
  add("layout.value_dim", layout.value_dim);
  add("layout.block_tokens", layout.block_tokens);
  add("layout.key_dtype", DTypeName(layout.key_dtype));
  add("layout.value_dtype", DTypeName(layout.value_dtype));
  add("layout.key_scale", FloatBits(layout.key_scale));
  add("layout.value_scale", FloatBits(layout.value_scale));
  add("layout.value_source",
      layout.value_source == ValueSource::kKeyPrefix ? "key_prefix" : "separate");
  for (size_t layer = 0; layer < profiles.size(); ++layer) {
    AddProfile(layer, profiles[layer], &fields);
  }
  const bool uses_tables = std::any_of(profiles.begin(), profiles.end(),
                                       [](const auto& profile) { return profile.uses_tables(); });
  if (uses_tables) {
    add("tables_digest", tables_digest.has_value() ? ToHex(*tables_digest) : std::string("none"));
  }
  return fields;
}

Fingerprint FingerprintOf(const ModelFields& fields) {
  std::string text = "sketchkv model\n";
  for (const auto& [field, value] : fields) {
    absl::StrAppend(&text, field, "=", value.size(), ":", value, "\n");
  }
  return Sha256Digest128({reinterpret_cast<const uint8_t*>(text.data()), text.size()});
}

absl::Status NameDifference(const ModelFields& registered, const ModelFields& asked) {
  for (size_t i = 0; i < registered.size() && i < asked.size(); ++i) {
    if (registered[i] == asked[i]) continue;
    return absl::AlreadyExistsError(absl::StrCat(
        "model ", asked.front().second, " is registered with ", registered[i].first, " = ",
        registered[i].second, "; this request has ", asked[i].first, " = ", asked[i].second));
  }
  return absl::AlreadyExistsError(absl::StrCat("model ", asked.front().second,
                                               " is registered with ", registered.size(),
                                               " fields; this request has ", asked.size()));
}

}  // namespace sketchkv
