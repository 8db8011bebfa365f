#pragma once

#include "kernels/codec.h"
#include "sketchkv/v1/models.pb.h"
#include "tests/client/fake_server.h"

namespace sketchkv {

// What a server answers for a model that `codec` is the codec of: fp32, fingerprint 'f's.
inline v1::Model ModelMessage(const std::string& name, const BlockCodec& codec) {
  v1::Model model = SmallModel(name);
  v1::KvLayout* layout = model.mutable_layout();
  layout->set_num_layers(codec.layout().num_layers);
  layout->set_num_kv_heads(codec.layout().num_kv_heads);
  layout->set_head_dim(codec.layout().head_dim);
  layout->set_value_dim(codec.layout().value_dim);
  layout->set_block_tokens(codec.layout().block_tokens);
  model.clear_profiles();
  for (uint32_t layer = 0; layer < codec.layout().num_layers; ++layer) {
    const CodecProfile& from = codec.profiles()[layer];
    v1::Profile* to = model.add_profiles();
    to->set_name(from.name);
    to->set_version(from.version);
    to->set_layer_begin(layer);
    to->set_layer_count(1);
    to->set_key_codec(static_cast<v1::KeyCodec>(from.key_codec));
    to->set_sign_bits(from.sign_bits);
    to->set_code_bits(from.code_bits);
    to->set_key_row_bits(from.key_row_bits);
    if (from.key_codec != KeyCodec::kRaw) {
      to->set_projection(static_cast<v1::Projection>(from.projection));
      to->set_scale_rule(static_cast<v1::ScaleRule>(from.scale_rule));
      to->set_centering(static_cast<v1::Centering>(from.centering));
      to->set_outlier_method(static_cast<v1::OutlierMethod>(from.outlier_method));
      to->set_outlier_source(static_cast<v1::OutlierSource>(from.outlier_source));
    }
    to->set_num_outliers(from.num_outliers);
    to->set_outlier_sign_bits(from.outlier_sign_bits);
    to->set_outlier_group_tokens(from.outlier_group_tokens);
    to->set_value_codec(static_cast<v1::ValueCodec>(from.value_codec));
    to->set_value_scale_rule(static_cast<v1::ScaleRule>(from.value_scale_rule));
    to->set_value_bits(from.value_bits);
    to->set_value_row_bits(from.value_row_bits);
    to->set_value_group_size(from.value_group_size);
    to->set_seed(from.seed);
    to->set_cell_bytes(static_cast<uint32_t>(codec.cell_bytes(layer)));
  }
  model.set_format_version(kFormatVersion);
  model.set_slot_bytes(codec.slot_bytes());
  return model;
}

}  // namespace sketchkv
