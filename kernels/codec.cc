#include "kernels/codec.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"
#include "kernels/cpu/cpu_codec.h"

namespace sketchkv {
namespace {

absl::Status CheckLayer(const KvLayout& layout, const CodecProfile& profile, uint32_t layer,
                        const ModelTables* tables) {
  absl::Status status = ValidateProfile(profile, layout);
  if (status.ok() && profile.uses_tables()) {
    if (tables == nullptr) {
      status = absl::InvalidArgumentError(
          absl::StrCat("profile '", profile.name, "' needs registered tables, 0 are given"));
    } else {
      status = tables->CheckServes(profile, layout, layer);
    }
  }
  if (status.ok()) return status;
  return absl::InvalidArgumentError(absl::StrCat("layer ", layer, ": ", status.message()));
}

}  // namespace

absl::StatusOr<std::unique_ptr<BlockCodec>> BlockCodec::Create(
    const KvLayout& layout, std::vector<CodecProfile> profiles, Isa isa,
    std::shared_ptr<const ModelTables> tables) {
  SKETCHKV_RETURN_IF_ERROR(layout.Validate());
  if (profiles.size() != layout.num_layers) {
    return absl::InvalidArgumentError(absl::StrCat("profiles has ", profiles.size(),
                                                   " entries, must have num_layers (",
                                                   layout.num_layers, ")"));
  }
  if (!IsaSupported(isa)) {
    return absl::FailedPreconditionError(
        absl::StrCat("isa is '", IsaName(isa), "', but this CPU or this build lacks it"));
  }
  std::unique_ptr<BlockCodec> codec(new BlockCodec());
  codec->layout_ = layout;
  codec->tables_ = std::move(tables);
  const uint32_t heads = layout.num_kv_heads;
  // Layers of one profile share projections; where no table is used, whole codecs.
  std::vector<std::pair<const CodecProfile*, SharedProjections>> projections;
  for (uint32_t layer = 0; layer < layout.num_layers; ++layer) {
    const CodecProfile& profile = profiles[layer];
    SKETCHKV_RETURN_IF_ERROR(CheckLayer(layout, profile, layer, codec->tables_.get()));
    auto shared = std::find_if(projections.begin(), projections.end(),
                               [&](const auto& known) { return *known.first == profile; });
    const bool first_of_profile = shared == projections.end();
    if (first_of_profile) {
      projections.emplace_back(&profile, MakeProjections(layout, profile));
      shared = projections.end() - 1;
    }
    for (uint32_t head = 0; head < heads; ++head) {
      const HeadTable* table = nullptr;
      if (profile.uses_tables()) {
        table = &codec->tables_->at(layer, head);
      } else if (head > 0 || !first_of_profile) {
        const auto layer_of_profile = static_cast<size_t>(shared->first - profiles.data());
        codec->cells_.push_back(codec->cells_[layer_of_profile * heads]);
        continue;
      }
      codec->cells_.push_back(std::make_shared<const CpuCellCodec>(layout, profile, shared->second,
                                                                   table, KernelsOf(isa)));
    }
    codec->layer_offsets_.push_back(codec->slot_bytes_);
    codec->slot_bytes_ += codec->cell_bytes(layer) * heads;
  }
  codec->profiles_ = std::move(profiles);
  return codec;
}

BitsPerNumber BlockCodec::bits_per_number() const {
  double key_bytes = 0;
  double value_bytes = 0;
  for (uint32_t layer = 0; layer < layout_.num_layers; ++layer) {
    // Padding is shared out in proportion to what each half needs.
    const CellCodec& codec = cell(layer, 0);
    const auto keys = static_cast<double>(codec.key_bytes());
    const auto values = static_cast<double>(codec.value_bytes());
    const double stored = static_cast<double>(codec.cell_bytes()) * layout_.num_kv_heads;
    key_bytes += stored * keys / (keys + values);
    value_bytes += stored * values / (keys + values);
  }
  const double rows = 1.0 * layout_.num_layers * layout_.num_kv_heads * layout_.block_tokens;
  const bool separate = layout_.value_source == ValueSource::kSeparate;
  const double key_numbers = rows * layout_.head_dim;
  const double value_numbers = separate ? rows * layout_.value_dim : 0.0;
  BitsPerNumber bits;
  bits.keys = 8 * key_bytes / key_numbers;
  bits.values = separate ? 8 * value_bytes / value_numbers : 0.0;
  bits.all = 8 * (key_bytes + value_bytes) / (key_numbers + value_numbers);
  return bits;
}

std::span<const float> BlockCodec::dense_projection(uint32_t layer) const {
  // The only implementation of CellCodec there is.
  return static_cast<const CpuCellCodec&>(cell(layer, 0)).dense_projection();
}

}  // namespace sketchkv
