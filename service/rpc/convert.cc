#include "service/rpc/convert.h"

#include <cmath>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"

namespace sketchkv {
namespace {

// Of a fingerprint or another digest.
std::string BytesOf(const Digest128& digest) { return std::string(digest.begin(), digest.end()); }

// A knob whose numbers are those of the domain's enum, from 1 to `last`.
template <typename Domain, typename Proto>
absl::StatusOr<Domain> KnobFromProto(const char* knob, Proto value, Proto last) {
  if (value < 1 || value > last) {
    return absl::InvalidArgumentError(absl::StrCat(knob, " is ", static_cast<int>(value),
                                                   "; it needs 1 to ", static_cast<int>(last)));
  }
  return static_cast<Domain>(value);
}

v1::Profile ProfileToProto(const CodecProfile& profile) {
  v1::Profile message;
  message.set_name(profile.name);
  message.set_version(profile.version);
  message.set_key_codec(static_cast<v1::KeyCodec>(profile.key_codec));
  message.set_sign_bits(profile.sign_bits);
  message.set_code_bits(profile.code_bits);
  message.set_key_row_bits(profile.key_row_bits);
  if (profile.key_codec != KeyCodec::kRaw) {
    message.set_projection(static_cast<v1::Projection>(profile.projection));
    message.set_scale_rule(static_cast<v1::ScaleRule>(profile.scale_rule));
    message.set_centering(static_cast<v1::Centering>(profile.centering));
    message.set_outlier_method(static_cast<v1::OutlierMethod>(profile.outlier_method));
    message.set_outlier_source(static_cast<v1::OutlierSource>(profile.outlier_source));
  }
  message.set_num_outliers(profile.num_outliers);
  message.set_outlier_sign_bits(profile.outlier_sign_bits);
  message.set_outlier_group_tokens(profile.outlier_group_tokens);
  message.set_value_codec(static_cast<v1::ValueCodec>(profile.value_codec));
  if (profile.value_codec == ValueCodec::kRotated || profile.value_codec == ValueCodec::kBasis) {
    message.set_value_scale_rule(static_cast<v1::ScaleRule>(profile.value_scale_rule));
  }
  message.set_value_bits(profile.value_bits);
  message.set_value_row_bits(profile.value_row_bits);
  message.set_value_group_size(profile.value_group_size);
  message.set_seed(profile.seed);
  return message;
}

void FillLayout(const KvLayout& layout, v1::KvLayout* out) {
  out->set_num_layers(layout.num_layers);
  out->set_num_kv_heads(layout.num_kv_heads);
  out->set_head_dim(layout.head_dim);
  out->set_value_dim(layout.value_dim);
  out->set_block_tokens(layout.block_tokens);
  out->set_key_dtype(static_cast<v1::DType>(layout.key_dtype));
  out->set_value_dtype(static_cast<v1::DType>(layout.value_dtype));
  out->set_key_scale(layout.key_scale);
  out->set_value_scale(layout.value_scale);
  out->set_value_source(static_cast<v1::ValueSource>(layout.value_source));
}

absl::StatusOr<AttentionItem> ItemFromProto(const v1::AttentionItem& message,
                                            const KvLayout& layout) {
  AttentionItem item;
  switch (message.target_case()) {
    case v1::AttentionItem::kTip: {
      SKETCHKV_ASSIGN_OR_RETURN(item.tip, HashFromProto("tip", message.tip()));
      break;
    }
    case v1::AttentionItem::kBlocks:
      if (message.blocks().block_hashes_size() > 65536) {
        return absl::InvalidArgumentError(absl::StrCat("blocks.block_hashes has ",
                                                       message.blocks().block_hashes_size(),
                                                       " entries; it needs 1 to 65536"));
      }
      for (const std::string& bytes : message.blocks().block_hashes()) {
        SKETCHKV_ASSIGN_OR_RETURN(BlockHash hash, HashFromProto("blocks.block_hashes", bytes));
        item.blocks.push_back(hash);
      }
      break;
    case v1::AttentionItem::kLeaseId:
      item.lease_id = message.lease_id();
      break;
    case v1::AttentionItem::TARGET_NOT_SET:
      break;
  }
  SKETCHKV_ASSIGN_OR_RETURN(const CellRange range,
                            ResolveRange({.layer_begin = message.layer(),
                                          .layer_count = 1,
                                          .head_begin = message.head_begin(),
                                          .head_count = message.head_count()},
                                         layout));
  item.layer = range.layer_begin;
  item.head_begin = range.head_begin;
  item.head_count = range.head_count;
  item.num_query_tokens = message.num_query_tokens();
  item.token_begin = message.token_begin();
  if (message.has_token_end()) item.token_end = message.token_end();
  item.options.softmax_scale = message.softmax_scale() == 0.0f
                                   ? 1.0f / std::sqrt(static_cast<float>(layout.head_dim))
                                   : message.softmax_scale();
  item.options.logit_softcap = message.logit_softcap();
  return item;
}

}  // namespace

absl::StatusOr<DType> FromProto(const char* field, v1::DType dtype) {
  if (dtype < v1::DTYPE_BF16 || dtype > v1::DTYPE_FP8_E5M2) {
    return absl::InvalidArgumentError(
        absl::StrCat(field, " is ", static_cast<int>(dtype), "; it needs 1 to 5"));
  }
  return static_cast<DType>(dtype);
}

absl::StatusOr<RawOrder> FromProto(const char* field, v1::RawOrder order) {
  if (order < v1::RAW_ORDER_NHD || order > v1::RAW_ORDER_HND) {
    return absl::InvalidArgumentError(
        absl::StrCat(field, " is ", static_cast<int>(order), "; it needs 1 or 2"));
  }
  return static_cast<RawOrder>(order);
}

absl::StatusOr<BlockHash> HashFromProto(const char* field, const std::string& bytes) {
  absl::StatusOr<BlockHash> hash =
      BlockHash::FromBytes({reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()});
  if (hash.ok()) return hash;
  return absl::InvalidArgumentError(absl::StrCat(field, ": ", hash.status().message()));
}

absl::StatusOr<KvLayout> FromProto(const v1::KvLayout& message) {
  KvLayout layout;
  layout.num_layers = message.num_layers();
  layout.num_kv_heads = message.num_kv_heads();
  layout.head_dim = message.head_dim();
  layout.value_dim = message.value_dim();
  layout.block_tokens = message.block_tokens();
  SKETCHKV_ASSIGN_OR_RETURN(layout.key_dtype, FromProto("layout.key_dtype", message.key_dtype()));
  SKETCHKV_ASSIGN_OR_RETURN(layout.value_dtype,
                            FromProto("layout.value_dtype", message.value_dtype()));
  if (message.key_scale() != 0.0f) layout.key_scale = message.key_scale();
  if (message.value_scale() != 0.0f) layout.value_scale = message.value_scale();
  if (message.value_source() < 0 || message.value_source() > v1::VALUE_SOURCE_KEY_PREFIX) {
    return absl::InvalidArgumentError(absl::StrCat(
        "layout.value_source is ", static_cast<int>(message.value_source()), "; it needs 0 to 2"));
  }
  if (message.value_source() == v1::VALUE_SOURCE_KEY_PREFIX) {
    layout.value_source = ValueSource::kKeyPrefix;
  }
  return layout;
}

absl::StatusOr<LayerProfileRequest> FromProto(const v1::ProfileRequest& message) {
  LayerProfileRequest request;
  request.profile.name = message.name();
  request.layer_begin = message.layer_begin();
  request.layer_count = message.layer_count();
  if (message.has_sign_bits()) request.profile.sign_bits = message.sign_bits();
  if (message.has_projection()) {
    SKETCHKV_ASSIGN_OR_RETURN(
        request.profile.projection,
        KnobFromProto<Projection>("projection", message.projection(), v1::PROJECTION_BASIS));
  }
  if (message.has_scale_rule()) {
    SKETCHKV_ASSIGN_OR_RETURN(
        request.profile.scale_rule,
        KnobFromProto<ScaleRule>("scale_rule", message.scale_rule(), v1::SCALE_RULE_LEAST_SQUARES));
  }
  if (message.has_centering()) {
    SKETCHKV_ASSIGN_OR_RETURN(
        request.profile.centering,
        KnobFromProto<Centering>("centering", message.centering(), v1::CENTERING_BLOCK));
  }
  if (message.has_outlier_source()) {
    SKETCHKV_ASSIGN_OR_RETURN(
        request.profile.outlier_source,
        KnobFromProto<OutlierSource>("outlier_source", message.outlier_source(),
                                     v1::OUTLIER_SOURCE_TABLE));
  }
  if (message.has_value_codec()) {
    SKETCHKV_ASSIGN_OR_RETURN(
        request.profile.value_codec,
        KnobFromProto<ValueCodec>("value_codec", message.value_codec(), v1::VALUE_CODEC_BASIS));
  }
  if (message.has_value_scale_rule()) {
    SKETCHKV_ASSIGN_OR_RETURN(
        request.profile.value_scale_rule,
        KnobFromProto<ScaleRule>("value_scale_rule", message.value_scale_rule(),
                                 v1::SCALE_RULE_LEAST_SQUARES));
  }
  if (message.has_num_outliers()) request.profile.num_outliers = message.num_outliers();
  if (message.has_outlier_sign_bits()) {
    request.profile.outlier_sign_bits = message.outlier_sign_bits();
  }
  if (message.has_value_bits()) request.profile.value_bits = message.value_bits();
  if (message.has_value_group_size()) request.profile.value_group_size = message.value_group_size();
  if (message.has_seed()) request.profile.seed = message.seed();
  return request;
}

CellRange FromProto(const v1::CellRange& message) {
  return {.layer_begin = message.layer_begin(),
          .layer_count = message.layer_count(),
          .head_begin = message.head_begin(),
          .head_count = message.head_count()};
}

PartLayout FromProto(const v1::PartLayout& message) {
  PartLayout part;
  part.range = FromProto(message.range());
  part.num_tokens = message.num_tokens();
  part.raw_order = static_cast<RawOrder>(message.raw_order());  // checked with the payload's size
  part.fingerprint = message.fingerprint();
  part.format_version = message.format_version();
  return part;
}

v1::PartLayout ToProto(const PartLayout& part, bool encoded) {
  v1::PartLayout message;
  message.mutable_range()->set_layer_begin(part.range.layer_begin);
  message.mutable_range()->set_layer_count(part.range.layer_count);
  message.mutable_range()->set_head_begin(part.range.head_begin);
  message.mutable_range()->set_head_count(part.range.head_count);
  message.set_num_tokens(part.num_tokens);
  if (encoded) {
    message.set_fingerprint(part.fingerprint);
    message.set_format_version(part.format_version);
  } else {
    message.set_raw_order(static_cast<v1::RawOrder>(part.raw_order));
  }
  return message;
}

v1::Model ToProto(const Model& model) {
  v1::Model message;
  message.set_name(model.name);
  FillLayout(model.layout(), message.mutable_layout());
  const std::vector<CodecProfile>& profiles = model.codec->profiles();
  for (uint32_t layer = 0; layer < profiles.size();) {
    uint32_t end = layer + 1;
    while (end < profiles.size() && profiles[end] == profiles[layer]) ++end;
    v1::Profile profile = ProfileToProto(profiles[layer]);
    profile.set_layer_begin(layer);
    profile.set_layer_count(end - layer);
    profile.set_cell_bytes(static_cast<uint32_t>(model.codec->cell_bytes(layer)));
    *message.add_profiles() = std::move(profile);
    layer = end;
  }
  message.set_fingerprint(BytesOf(model.fingerprint));
  if (model.tables_digest.has_value()) message.set_tables_digest(BytesOf(*model.tables_digest));
  message.set_format_version(kFormatVersion);
  message.set_slot_bytes(model.codec->slot_bytes());
  message.set_raw_block_bytes(model.raw_block_bytes());
  const BitsPerNumber bits = model.codec->bits_per_number();
  message.set_key_bits(bits.keys);
  message.set_value_bits(bits.values);
  message.set_bits_per_number(bits.all);
  return message;
}

absl::StatusOr<AttentionRequest> FromProto(const v1::AttentionRequest& message,
                                           std::shared_ptr<const Model> model,
                                           std::vector<float>* aligned) {
  AttentionRequest request;
  request.model = std::move(model);
  request.queries_per_kv_head = message.queries_per_kv_head();
  if (message.items_size() > 4096) {
    return absl::InvalidArgumentError(
        absl::StrCat("items has ", message.items_size(), " entries; it needs 1 to 4096"));
  }
  for (int i = 0; i < message.items_size(); ++i) {
    absl::StatusOr<AttentionItem> item = ItemFromProto(message.items(i), request.model->layout());
    if (!item.ok()) {
      return absl::Status(item.status().code(),
                          absl::StrCat("items[", i, "].", item.status().message()));
    }
    request.items.push_back(*std::move(item));
  }
  const std::string& bytes = message.queries();
  if (bytes.size() % sizeof(float) != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("queries has ", bytes.size(), " bytes; float32 needs a multiple of 4"));
  }
  const size_t count = bytes.size() / sizeof(float);
  if (reinterpret_cast<uintptr_t>(bytes.data()) % alignof(float) == 0) {
    request.queries = {reinterpret_cast<const float*>(bytes.data()), count};
  } else {
    aligned->resize(count);
    std::memcpy(aligned->data(), bytes.data(), bytes.size());
    request.queries = *aligned;
  }
  return request;
}

}  // namespace sketchkv
