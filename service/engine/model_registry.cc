#include "service/engine/model_registry.h"

#include <algorithm>
#include <optional>

#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"
#include "service/engine/model_fields.h"

namespace sketchkv {
namespace {

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

// What a model gets that asks for no profile: of those it can have, the one that loses least.
ProfileRequest DefaultRequest(const ModelTables* tables) {
  ProfileRequest request;
  if (tables == nullptr) return request;
  const HeadTable& first = tables->at(0, 0);
  if (!first.key_basis.empty() && !first.value_basis.empty()) request.name = "klt";
  return request;
}

// One resolved profile a layer; the requests must cover each layer exactly once.
absl::StatusOr<std::vector<CodecProfile>> ResolveProfiles(
    const KvLayout& layout, const std::vector<LayerProfileRequest>& requests,
    const ModelTables* tables) {
  std::vector<std::optional<CodecProfile>> resolved(layout.num_layers);
  std::vector<LayerProfileRequest> wanted = requests;
  if (wanted.empty()) wanted.push_back({.profile = DefaultRequest(tables)});
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
      SKETCHKV_ASSIGN_OR_RETURN(
          resolved[layer],
          ResolveProfile(request.profile, layout, static_cast<uint32_t>(layer), tables));
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

// Of the dense projection made for `profile`; a registered basis is none.
uint64_t ProjectionBytes(const KvLayout& layout, const CodecProfile& profile) {
  const bool dense =
      profile.key_codec != KeyCodec::kRaw && (profile.projection == Projection::kOrthogonal ||
                                              profile.projection == Projection::kGaussian);
  if (!dense) return 0;
  const uint64_t rows =
      profile.key_codec == KeyCodec::kSketch ? profile.sign_bits : layout.head_dim;
  return rows * layout.head_dim * sizeof(float);
}

// Dense projections are made and kept a profile: many seeds would fill memory and hold a thread.
absl::Status CheckProjections(const KvLayout& layout, const std::vector<CodecProfile>& profiles) {
  uint64_t bytes = 0;
  for (size_t layer = 0; layer < profiles.size(); ++layer) {
    const auto end = profiles.begin() + static_cast<ptrdiff_t>(layer);
    if (std::find(profiles.begin(), end, profiles[layer]) != end) continue;
    bytes += ProjectionBytes(layout, profiles[layer]);
  }
  if (bytes <= ModelRegistry::kMaxProjectionBytes) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("the dense projections of profiles have ", bytes,
                                                 " bytes, of at most ",
                                                 ModelRegistry::kMaxProjectionBytes));
}

}  // namespace

uint64_t Model::raw_block_bytes() const {
  const uint64_t row_bytes = layout().key_row_bytes() + layout().value_row_bytes();
  return row_bytes * layout().num_layers * layout().num_kv_heads * layout().block_tokens;
}

struct ModelRegistry::Candidate {
  std::pair<uint32_t, std::string> key;
  const ModelFields& fields;
  const Fingerprint& fingerprint;
};

absl::StatusOr<std::shared_ptr<const Model>> ModelRegistry::FindSame(
    const Candidate& candidate) const {
  const auto it = models_.find(candidate.key);
  if (it == models_.end()) return nullptr;
  const Model& other = *it->second;
  if (other.fingerprint == candidate.fingerprint) return it->second;
  return NameDifference(
      DescribeModel(other.name, other.layout(), other.codec->profiles(), other.tables_digest),
      candidate.fields);
}

absl::StatusOr<std::shared_ptr<const Model>> ModelRegistry::Register(
    uint32_t tenant, const std::string& name, const KvLayout& layout,
    const std::vector<LayerProfileRequest>& requests,
    const std::optional<Digest128>& tables_digest) {
  SKETCHKV_RETURN_IF_ERROR(ValidateName(name));
  SKETCHKV_RETURN_IF_ERROR(layout.Validate());
  StoredTables stored;
  if (tables_digest.has_value()) {
    SKETCHKV_ASSIGN_OR_RETURN(stored, tables_.Find(tenant, *tables_digest));
  }
  SKETCHKV_ASSIGN_OR_RETURN(std::vector<CodecProfile> profiles,
                            ResolveProfiles(layout, requests, stored.tables.get()));
  SKETCHKV_RETURN_IF_ERROR(CheckProjections(layout, profiles));
  const ModelFields fields = DescribeModel(name, layout, profiles, tables_digest);
  const Fingerprint fingerprint = FingerprintOf(fields);
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
  if (std::any_of(profiles.begin(), profiles.end(),
                  [](const CodecProfile& profile) { return profile.uses_tables(); })) {
    model->tables_digest = tables_digest;
  } else {
    stored.tables = nullptr;
  }
  SKETCHKV_ASSIGN_OR_RETURN(model->codec, BlockCodec::Create(layout, std::move(profiles), isa_,
                                                             std::move(stored.tables)));
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
