#include "kernels/codec.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"
#include "kernels/cpu/cpu_codec.h"

namespace sketchkv {

absl::StatusOr<std::unique_ptr<BlockCodec>> BlockCodec::Create(const KvLayout& layout,
                                                               std::vector<CodecProfile> profiles,
                                                               Isa isa) {
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
  for (uint32_t layer = 0; layer < layout.num_layers; ++layer) {
    const CodecProfile& profile = profiles[layer];
    if (absl::Status status = ValidateProfile(profile, layout); !status.ok()) {
      return absl::InvalidArgumentError(absl::StrCat("layer ", layer, ": ", status.message()));
    }
    std::shared_ptr<const CellCodec> shared;
    for (const auto& other : codec->layer_codecs_) {
      if (other->profile() == profile) shared = other;
    }
    if (shared == nullptr) {
      shared = std::make_shared<const CpuCellCodec>(layout, profile, KernelsOf(isa));
    }
    codec->layer_offsets_.push_back(codec->slot_bytes_);
    codec->slot_bytes_ += shared->cell_bytes() * layout.num_kv_heads;
    codec->layer_codecs_.push_back(std::move(shared));
  }
  codec->profiles_ = std::move(profiles);
  return codec;
}

BitsPerNumber BlockCodec::bits_per_number() const {
  double key_bytes = 0;
  double value_bytes = 0;
  for (const auto& codec : layer_codecs_) {
    // Header and padding are shared out in proportion to what each half needs.
    const auto keys = static_cast<double>(codec->key_bytes());
    const auto values = static_cast<double>(codec->value_bytes());
    const double stored = static_cast<double>(codec->cell_bytes()) * layout_.num_kv_heads;
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
  return static_cast<const CpuCellCodec&>(*layer_codecs_[layer]).dense_projection();
}

}  // namespace sketchkv
