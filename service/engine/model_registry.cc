#include "service/engine/model_registry.h"

#include <openssl/evp.h>

#include <algorithm>
#include <cstring>
#include <optional>

#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"

namespace sketchkv {
namespace {

// One name-value pair a field that stored bytes depend on. The list is what the fingerprint digests
// and what a difference is named after, so the two cannot drift apart.
using Fields = std::vector<std::pair<std::string, std::string>>;

Fields DescribeModel(const std::string& name, const KvLayout& layout,
                     const std::vector<CodecProfile>& profiles) {
  Fields fields;
  const auto add = [&fields](std::string field, const auto& value) {
    fields.emplace_back(std::move(field), absl::StrCat(value));
  };
  const auto float_bits = [](float value) {
    uint32_t bits = 0;
    std::memcpy(&bits, &value, sizeof(bits));
    return absl::StrCat(value, " (0x", absl::Hex(bits), ")");
  };
  add("name", name);
  add("format_version", kFormatVersion);
  add("layout.num_layers", layout.num_layers);
  add("layout.num_kv_heads", layout.num_kv_heads);
  add("layout.head_dim", layout.head_dim);
  add("layout.value_dim", layout.value_dim);
  add("layout.block_tokens", layout.block_tokens);
  add("layout.key_dtype", DTypeName(layout.key_dtype));
  add("layout.value_dtype", DTypeName(layout.value_dtype));
  add("layout.key_scale", float_bits(layout.key_scale));
  add("layout.value_scale", float_bits(layout.value_scale));
  add("layout.value_source",
      layout.value_source == ValueSource::kKeyPrefix ? "key_prefix" : "separate");
  for (size_t layer = 0; layer < profiles.size(); ++layer) {
    const CodecProfile& profile = profiles[layer];
    const auto add_knob = [&](const char* knob, const auto& value) {
      add(absl::StrCat("profiles[layer ", layer, "].", knob), value);
    };
    add_knob("name", profile.name);
    add_knob("version", profile.version);
    add_knob("key_codec", static_cast<int>(profile.key_codec));
    add_knob("sign_bits", profile.sign_bits);
    add_knob("projection", static_cast<int>(profile.projection));
    add_knob("scale_rule", static_cast<int>(profile.scale_rule));
    add_knob("outlier_method", static_cast<int>(profile.outlier_method));
    add_knob("num_outliers", profile.num_outliers);
    add_knob("outlier_sign_bits", profile.outlier_sign_bits);
    add_knob("outlier_group_tokens", profile.outlier_group_tokens);
    add_knob("value_codec", static_cast<int>(profile.value_codec));
    add_knob("value_bits", profile.value_bits);
    add_knob("value_group_size", profile.value_group_size);
    add_knob("seed", profile.seed);
  }
  return fields;
}

Fingerprint Digest(const Fields& fields) {
  std::string text = "sketchkv model\n";
  for (const auto& [field, value] : fields) {
    absl::StrAppend(&text, field, "=", value.size(), ":", value, "\n");
  }
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned int size = 0;
  EVP_Digest(text.data(), text.size(), digest, &size, EVP_sha256(), nullptr);
  Fingerprint fingerprint;
  std::memcpy(fingerprint.data(), digest, fingerprint.size());
  return fingerprint;
}

absl::Status ValidateName(const std::string& name) {
  if (name.empty() || name.size() > 128) {
    return absl::InvalidArgumentError(
        absl::StrCat("name has ", name.size(), " characters; it needs 1 to 128"));
  }
  for (size_t i = 0; i < name.size(); ++i) {
    const char c = name[i];
    const bool allowed = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
                         (c >= '0' && c <= '9') || c == '.' || c == '_' || c == '/' || c == '-';
    if (!allowed) {
      return absl::InvalidArgumentError(absl::StrCat("name has the byte ", static_cast<uint8_t>(c),
                                                     " at ", i,
                                                     "; allowed are letters, digits and ._/-"));
    }
  }
  return absl::OkStatus();
}

// One resolved profile a layer; the requests must cover each layer exactly once.
absl::StatusOr<std::vector<CodecProfile>> ResolveProfiles(
    const KvLayout& layout, const std::vector<LayerProfileRequest>& requests) {
  std::vector<std::optional<CodecProfile>> resolved(layout.num_layers);
  std::vector<LayerProfileRequest> wanted = requests;
  if (wanted.empty()) wanted.emplace_back();
  for (size_t i = 0; i < wanted.size(); ++i) {
    const LayerProfileRequest& request = wanted[i];
    const uint64_t begin = request.layer_begin;
    const uint64_t end = request.layer_count == 0 ? layout.num_layers : begin + request.layer_count;
    if (begin >= end || end > layout.num_layers) {
      return absl::InvalidArgumentError(absl::StrCat("profiles[", i, "] is for layers ", begin,
                                                     " to ", end, " of a model with ",
                                                     layout.num_layers));
    }
    for (uint64_t layer = begin; layer < end; ++layer) {
      if (resolved[layer].has_value()) {
        return absl::InvalidArgumentError(
            absl::StrCat("profiles[", i, "] gives layer ", layer, " a second profile"));
      }
      SKETCHKV_ASSIGN_OR_RETURN(resolved[layer], ResolveProfile(request.profile, layout,
                                                                static_cast<uint32_t>(layer)));
    }
  }
  std::vector<CodecProfile> profiles;
  for (uint32_t layer = 0; layer < layout.num_layers; ++layer) {
    if (!resolved[layer].has_value()) {
      return absl::InvalidArgumentError(absl::StrCat("no profile is given for layer ", layer));
    }
    profiles.push_back(*std::move(resolved[layer]));
  }
  return profiles;
}

// Dense projections are made and kept a profile: many seeds would fill memory and hold a thread.
absl::Status CheckProjections(const KvLayout& layout, const std::vector<CodecProfile>& profiles) {
  uint64_t bytes = 0;
  for (size_t layer = 0; layer < profiles.size(); ++layer) {
    const CodecProfile& profile = profiles[layer];
    const bool dense =
        profile.key_codec == KeyCodec::kSketch && profile.projection != Projection::kHadamard;
    const auto end = profiles.begin() + static_cast<ptrdiff_t>(layer);
    if (!dense || std::find(profiles.begin(), end, profile) != end) continue;
    bytes += uint64_t{profile.sign_bits} * layout.head_dim * sizeof(float);
  }
  if (bytes <= ModelRegistry::kMaxProjectionBytes) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("the dense projections of profiles have ", bytes, " bytes, of at most ",
                   ModelRegistry::kMaxProjectionBytes));
}

absl::Status NameDifference(const Fields& registered, const Fields& asked) {
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

}  // namespace

uint64_t Model::raw_block_bytes() const {
  const uint64_t row_bytes = layout().key_row_bytes() + layout().value_row_bytes();
  return row_bytes * layout().num_layers * layout().num_kv_heads * layout().block_tokens;
}

struct ModelRegistry::Candidate {
  std::pair<uint32_t, std::string> key;
  const Fields& fields;
  const Fingerprint& fingerprint;
};

absl::StatusOr<std::shared_ptr<const Model>> ModelRegistry::FindSame(
    const Candidate& candidate) const {
  const auto it = models_.find(candidate.key);
  if (it == models_.end()) return nullptr;
  const Model& other = *it->second;
  if (other.fingerprint == candidate.fingerprint) return it->second;
  return NameDifference(DescribeModel(other.name, other.layout(), other.codec->profiles()),
                        candidate.fields);
}

absl::StatusOr<std::shared_ptr<const Model>> ModelRegistry::Register(
    uint32_t tenant, const std::string& name, const KvLayout& layout,
    const std::vector<LayerProfileRequest>& requests) {
  SKETCHKV_RETURN_IF_ERROR(ValidateName(name));
  SKETCHKV_RETURN_IF_ERROR(layout.Validate());
  SKETCHKV_ASSIGN_OR_RETURN(std::vector<CodecProfile> profiles, ResolveProfiles(layout, requests));
  SKETCHKV_RETURN_IF_ERROR(CheckProjections(layout, profiles));
  const Fields fields = DescribeModel(name, layout, profiles);
  const Fingerprint fingerprint = Digest(fields);
  const Candidate candidate{.key = {tenant, name}, .fields = fields, .fingerprint = fingerprint};
  {
    // Looked up before the codec is built: registering again must be cheap.
    MutexLock lock(&mu_);
    SKETCHKV_ASSIGN_OR_RETURN(std::shared_ptr<const Model> known, FindSame(candidate));
    if (known != nullptr) return known;
  }
  auto model = std::make_shared<Model>();
  model->name = name;
  model->tenant = tenant;
  SKETCHKV_ASSIGN_OR_RETURN(model->codec, BlockCodec::Create(layout, std::move(profiles), isa_));
  model->fingerprint = fingerprint;
  model->shape = {.num_layers = layout.num_layers,
                  .num_heads = layout.num_kv_heads,
                  .block_tokens = layout.block_tokens,
                  .slot_bytes = model->codec->slot_bytes()};
  MutexLock lock(&mu_);
  SKETCHKV_ASSIGN_OR_RETURN(std::shared_ptr<const Model> raced, FindSame(candidate));
  if (raced != nullptr) return raced;
  if (models_.size() >= kMaxModels) {
    return absl::ResourceExhaustedError(
        absl::StrCat(models_.size(), " models are registered, of at most ", kMaxModels));
  }
  models_[candidate.key] = model;
  return model;
}

std::shared_ptr<const Model> ModelRegistry::Find(uint32_t tenant,
                                                 const Fingerprint& fingerprint) const {
  MutexLock lock(&mu_);
  for (const auto& [key, model] : models_) {
    if (key.first == tenant && model->fingerprint == fingerprint) return model;
  }
  return nullptr;
}

absl::StatusOr<std::shared_ptr<const Model>> ModelRegistry::Get(uint32_t tenant,
                                                                const std::string& name) const {
  MutexLock lock(&mu_);
  const auto it = models_.find({tenant, name});
  if (it == models_.end()) {
    return absl::NotFoundError(absl::StrCat("model '", name, "' is not registered"));
  }
  return it->second;
}

std::vector<std::shared_ptr<const Model>> ModelRegistry::List(uint32_t tenant) const {
  MutexLock lock(&mu_);
  std::vector<std::shared_ptr<const Model>> models;
  for (const auto& [key, model] : models_) {
    if (key.first == tenant) models.push_back(model);
  }
  return models;
}

absl::StatusOr<std::shared_ptr<const Model>> ModelRegistry::Remove(uint32_t tenant,
                                                                   const std::string& name) {
  MutexLock lock(&mu_);
  const auto it = models_.find({tenant, name});
  if (it == models_.end()) {
    return absl::NotFoundError(absl::StrCat("model '", name, "' is not registered"));
  }
  std::shared_ptr<const Model> model = it->second;
  models_.erase(it);
  return model;
}

size_t ModelRegistry::size() const {
  MutexLock lock(&mu_);
  return models_.size();
}

}  // namespace sketchkv
