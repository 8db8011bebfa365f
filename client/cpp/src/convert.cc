#include "client/cpp/src/convert.h"

#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"

namespace sketchkv::client {
namespace {

absl::StatusOr<ElementType> FromProto(absl::string_view field, v1::DType dtype) {
  if (dtype >= v1::DTYPE_BF16 && dtype <= v1::DTYPE_FP8_E5M2)
    return static_cast<ElementType>(dtype);
  return absl::InternalError(absl::StrCat("the server's ", field, " is unknown: ", int{dtype}));
}

absl::Status CheckBound(absl::string_view field, uint32_t value, uint32_t low, uint32_t high) {
  if (value >= low && value <= high) return absl::OkStatus();
  return absl::InternalError(
      absl::StrCat("the server's ", field, " is ", value, ", want ", low, " to ", high));
}

absl::StatusOr<CacheLayout> FromProto(const v1::KvLayout& layout) {
  SKETCHKV_RETURN_IF_ERROR(CheckBound("num_layers", layout.num_layers(), 1, 256));
  SKETCHKV_RETURN_IF_ERROR(CheckBound("num_kv_heads", layout.num_kv_heads(), 1, 256));
  SKETCHKV_RETURN_IF_ERROR(CheckBound("head_dim", layout.head_dim(), 16, 576));
  SKETCHKV_RETURN_IF_ERROR(CheckBound("value_dim", layout.value_dim(), 16, 576));
  SKETCHKV_RETURN_IF_ERROR(CheckBound("block_tokens", layout.block_tokens(), 1, 1024));
  CacheLayout out;
  out.num_layers = layout.num_layers();
  out.num_kv_heads = layout.num_kv_heads();
  out.head_dim = layout.head_dim();
  out.value_dim = layout.value_dim();
  out.block_tokens = layout.block_tokens();
  SKETCHKV_ASSIGN_OR_RETURN(out.key_type, FromProto("key_dtype", layout.key_dtype()));
  SKETCHKV_ASSIGN_OR_RETURN(out.value_type, FromProto("value_dtype", layout.value_dtype()));
  out.key_scale = layout.key_scale() == 0 ? 1.0f : layout.key_scale();
  out.value_scale = layout.value_scale() == 0 ? 1.0f : layout.value_scale();
  out.values_are_key_prefix = layout.value_source() == v1::VALUE_SOURCE_KEY_PREFIX;
  return out;
}

// An enum of the protocol whose numbers are those of the SDK's, from 1 to `last`.
template <typename Choice, typename Proto>
std::optional<Choice> ChoiceOf(Proto value, Choice last) {
  if (value < 1 || value > static_cast<int>(last)) return std::nullopt;
  return static_cast<Choice>(value);
}

LayerProfile FromProto(const v1::Profile& profile) {
  LayerProfile out;
  out.name = profile.name();
  out.version = profile.version();
  out.layer_begin = profile.layer_begin();
  out.layer_count = profile.layer_count();
  out.key_codec = ChoiceOf(profile.key_codec(), LayerProfile::KeyCodec::kCodes);
  out.sign_bits = profile.sign_bits();
  out.code_bits = profile.code_bits();
  out.key_row_bits = profile.key_row_bits();
  out.projection = ChoiceOf(profile.projection(), ProfileSpec::Projection::kBasis);
  out.scale_rule = ChoiceOf(profile.scale_rule(), ProfileSpec::ScaleRule::kLeastSquares);
  out.centering = ChoiceOf(profile.centering(), ProfileSpec::Centering::kBlock);
  out.num_outliers = profile.num_outliers();
  if (out.num_outliers > 0) {
    out.outlier_source = ChoiceOf(profile.outlier_source(), ProfileSpec::OutlierSource::kTable);
  }
  out.value_codec = ChoiceOf(profile.value_codec(), ProfileSpec::ValueCodec::kBasis);
  out.value_scale_rule =
      ChoiceOf(profile.value_scale_rule(), ProfileSpec::ScaleRule::kLeastSquares);
  out.value_bits = profile.value_bits();
  out.value_row_bits = profile.value_row_bits();
  out.cell_bytes = profile.cell_bytes();
  return out;
}

// An enum of the protocol whose numbers are those of the kernels' enum; `fallback` stands for
// "does not apply".
template <typename Kernel, typename Proto>
Kernel KernelEnum(Proto value, Kernel fallback) {
  return value == 0 ? fallback : static_cast<Kernel>(value);
}

// What the server resolved, field by field; what does not apply has the kernels' default.
CodecProfile KernelProfile(const v1::Profile& profile) {
  CodecProfile out;
  out.name = profile.name();
  out.version = profile.version();
  out.key_codec = static_cast<KeyCodec>(profile.key_codec());
  out.projection = KernelEnum(profile.projection(), out.projection);
  out.scale_rule = KernelEnum(profile.scale_rule(), out.scale_rule);
  out.centering = KernelEnum(profile.centering(), out.centering);
  out.sign_bits = profile.sign_bits();
  out.code_bits = profile.code_bits();
  out.key_row_bits = profile.key_row_bits();
  out.outlier_method = KernelEnum(profile.outlier_method(), out.outlier_method);
  out.outlier_source = KernelEnum(profile.outlier_source(), out.outlier_source);
  out.num_outliers = profile.num_outliers();
  out.outlier_sign_bits = profile.outlier_sign_bits();
  out.outlier_group_tokens = profile.outlier_group_tokens();
  out.value_codec = static_cast<ValueCodec>(profile.value_codec());
  out.value_scale_rule = KernelEnum(profile.value_scale_rule(), out.value_scale_rule);
  out.value_bits = profile.value_bits();
  out.value_row_bits = profile.value_row_bits();
  out.value_group_size = profile.value_group_size();
  out.seed = profile.seed();
  return out;
}

}  // namespace

KvLayout KernelLayout(const CacheLayout& layout) {
  KvLayout out;
  out.num_layers = layout.num_layers;
  out.num_kv_heads = layout.num_kv_heads;
  out.head_dim = layout.head_dim;
  out.value_dim = layout.value_dim;
  out.block_tokens = layout.block_tokens;
  out.key_dtype = static_cast<DType>(layout.key_type);
  out.value_dtype = static_cast<DType>(layout.value_type);
  out.key_scale = layout.key_scale;
  out.value_scale = layout.value_scale;
  out.value_source =
      layout.values_are_key_prefix ? ValueSource::kKeyPrefix : ValueSource::kSeparate;
  return out;
}

v1::DType ToProto(ElementType type) { return static_cast<v1::DType>(type); }
v1::RawOrder ToProto(sketchkv::RawOrder order) { return static_cast<v1::RawOrder>(order); }

v1::GpuMemoryRef ToProto(const GpuMemory& memory) {
  v1::GpuMemoryRef out;
  out.set_ipc_handle(memory.ipc_handle.data(), memory.ipc_handle.size());
  out.set_offset(memory.offset);
  out.set_length(memory.length);
  return out;
}

v1::KvLayout ToProto(const CacheLayout& layout) {
  v1::KvLayout out;
  out.set_num_layers(layout.num_layers);
  out.set_num_kv_heads(layout.num_kv_heads);
  out.set_head_dim(layout.head_dim);
  out.set_value_dim(layout.value_dim);
  out.set_block_tokens(layout.block_tokens);
  out.set_key_dtype(ToProto(layout.key_type));
  out.set_value_dtype(ToProto(layout.value_type));
  out.set_key_scale(layout.key_scale);
  out.set_value_scale(layout.value_scale);
  out.set_value_source(layout.values_are_key_prefix ? v1::VALUE_SOURCE_KEY_PREFIX
                                                    : v1::VALUE_SOURCE_SEPARATE);
  return out;
}

v1::ProfileRequest ToProto(const ProfileSpec& spec) {
  v1::ProfileRequest out;
  out.set_name(spec.name);
  out.set_layer_begin(spec.layer_begin);
  out.set_layer_count(spec.layer_count);
  if (spec.sign_bits) out.set_sign_bits(*spec.sign_bits);
  if (spec.projection) out.set_projection(static_cast<v1::Projection>(*spec.projection));
  if (spec.num_outliers) out.set_num_outliers(*spec.num_outliers);
  if (spec.outlier_sign_bits) out.set_outlier_sign_bits(*spec.outlier_sign_bits);
  if (spec.value_bits) out.set_value_bits(*spec.value_bits);
  if (spec.value_group_size) out.set_value_group_size(*spec.value_group_size);
  if (spec.seed) out.set_seed(*spec.seed);
  if (spec.scale_rule) out.set_scale_rule(static_cast<v1::ScaleRule>(*spec.scale_rule));
  if (spec.centering) out.set_centering(static_cast<v1::Centering>(*spec.centering));
  if (spec.outlier_source) {
    out.set_outlier_source(static_cast<v1::OutlierSource>(*spec.outlier_source));
  }
  if (spec.value_scale_rule) {
    out.set_value_scale_rule(static_cast<v1::ScaleRule>(*spec.value_scale_rule));
  }
  if (spec.value_codec) out.set_value_codec(static_cast<v1::ValueCodec>(*spec.value_codec));
  return out;
}

v1::CellRange ToProto(const PartRange& range) {
  v1::CellRange out;
  out.set_layer_begin(range.layer_begin);
  out.set_layer_count(range.layer_count);
  out.set_head_begin(range.head_begin);
  out.set_head_count(range.head_count);
  return out;
}

absl::StatusOr<ModelInfo> FromProto(const v1::Model& model) {
  ModelInfo out;
  out.name = model.name();
  SKETCHKV_ASSIGN_OR_RETURN(out.layout, FromProto(model.layout()));
  uint64_t next_layer = 0;
  for (const v1::Profile& profile : model.profiles()) {
    if (profile.layer_begin() != next_layer) {
      return absl::InternalError(absl::StrCat("the server's profile begins at layer ",
                                              profile.layer_begin(), ", want ", next_layer));
    }
    next_layer += profile.layer_count();
    out.profiles.push_back(FromProto(profile));
  }
  if (next_layer != out.layout.num_layers) {
    return absl::InternalError(absl::StrCat("the server's profiles end at layer ", next_layer,
                                            ", want ", out.layout.num_layers));
  }
  uint64_t cells_bytes = 0;  // at most 256 layers and heads of 32 bits: no overflow
  for (const LayerProfile& profile : out.profiles) {
    cells_bytes += uint64_t{profile.layer_count} * out.layout.num_kv_heads * profile.cell_bytes;
  }
  if (cells_bytes != model.slot_bytes()) {
    return absl::InternalError(absl::StrCat("the server's slot_bytes is ", model.slot_bytes(),
                                            ", its cells take ", cells_bytes));
  }
  out.fingerprint = model.fingerprint();
  out.tables_digest = model.tables_digest();
  out.slot_bytes = model.slot_bytes();
  out.raw_block_bytes = model.raw_block_bytes();
  out.key_bits = model.key_bits();
  out.value_bits = model.value_bits();
  out.bits_per_number = model.bits_per_number();
  return out;
}

absl::Status CheckLayoutAnswered(const CacheLayout& answered, const CacheLayout& asked) {
  const auto scale = [](float value) { return value == 0 ? 1.0f : value; };  // 0: not given
  const struct {
    absl::string_view field;
    double have, want;
  } fields[] = {
      {"num_layers", double(answered.num_layers), double(asked.num_layers)},
      {"num_kv_heads", double(answered.num_kv_heads), double(asked.num_kv_heads)},
      {"head_dim", double(answered.head_dim), double(asked.head_dim)},
      {"value_dim", double(answered.value_dim), double(asked.value_dim)},
      {"block_tokens", double(answered.block_tokens), double(asked.block_tokens)},
      {"key_dtype", double(answered.key_type), double(asked.key_type)},
      {"value_dtype", double(answered.value_type), double(asked.value_type)},
      {"key_scale", scale(answered.key_scale), scale(asked.key_scale)},
      {"value_scale", scale(answered.value_scale), scale(asked.value_scale)},
      {"values_are_key_prefix", double(answered.values_are_key_prefix),
       double(asked.values_are_key_prefix)},
  };
  for (const auto& [field, have, want] : fields) {
    if (have == want) continue;
    return absl::InternalError(
        absl::StrCat("the server's model has ", field, " ", have, ", asked for was ", want));
  }
  return absl::OkStatus();
}

ServerStats FromProto(const v1::GetStatsResponse& stats) {
  ServerStats out;
  for (const auto& tier : stats.tiers()) {
    out.tiers.push_back({tier.name(), tier.capacity_bytes(), tier.page_bytes(), tier.used_bytes(),
                         tier.pinned_bytes(), tier.leased_bytes(), tier.blocks(),
                         tier.sealed_blocks()});
  }
  if (stats.has_gpu()) {
    const v1::GetStatsResponse::Gpu& gpu = stats.gpu();
    out.gpu = {gpu.name(),
               gpu.failure(),
               gpu.stale_blocks(),
               gpu.promoted_total(),
               gpu.demoted_total(),
               gpu.fallback_total(),
               gpu.lost_total(),
               gpu.attention_calls_total(),
               gpu.attention_batches_total(),
               gpu.attention_microseconds_total()};
  }
  out.leases = stats.leases();
  out.evicted_total = stats.evicted_total();
  out.expired_total = stats.expired_total();
  out.deleted_total = stats.deleted_total();
  out.integrity_failures_total = stats.integrity_failures_total();
  out.models = stats.models();
  out.put_raw_bytes_total = stats.put_raw_bytes_total();
  out.put_stored_bytes_total = stats.put_stored_bytes_total();
  out.isa = stats.isa();
  out.version = stats.version();
  return out;
}

CacheEvent FromProto(const v1::WatchResponse& event) {
  return {event.sequence(), static_cast<CacheEvent::Type>(event.type()), event.model(),
          event.block_hash(), event.parent_hash()};
}

absl::StatusOr<std::unique_ptr<BlockCodec>> CodecOf(const v1::Model& model,
                                                    std::shared_ptr<const ModelTables> tables) {
  if (model.format_version() != kFormatVersion) {
    return absl::FailedPreconditionError(absl::StrCat("the server's format_version is ",
                                                      model.format_version(), ", this client's ",
                                                      kFormatVersion));
  }
  SKETCHKV_ASSIGN_OR_RETURN(const CacheLayout layout, FromProto(model.layout()));
  std::vector<CodecProfile> profiles;
  for (const v1::Profile& profile : model.profiles()) {
    profiles.insert(profiles.end(), profile.layer_count(), KernelProfile(profile));
  }
  SKETCHKV_ASSIGN_OR_RETURN(const Isa isa, ChooseIsa("auto"));
  SKETCHKV_ASSIGN_OR_RETURN(
      std::unique_ptr<BlockCodec> codec,
      BlockCodec::Create(KernelLayout(layout), std::move(profiles), isa, std::move(tables)));
  if (codec->slot_bytes() != model.slot_bytes()) {
    return absl::FailedPreconditionError(absl::StrCat("the server's slot_bytes is ",
                                                      model.slot_bytes(), ", this client's ",
                                                      codec->slot_bytes()));
  }
  return codec;
}

}  // namespace sketchkv::client
