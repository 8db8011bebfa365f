#include "client/cpp/tune/profile_request.h"

#include "absl/strings/str_cat.h"
#include "client/cpp/cli/profile_spec.h"
#include "kernels/base/status_macros.h"

namespace sketchkv::tune {
namespace {

// An enum of the public types whose numbers are those of the codec's.
template <typename Kernel, typename Public>
std::optional<Kernel> KernelEnum(const std::optional<Public>& value) {
  if (!value) return std::nullopt;
  return static_cast<Kernel>(*value);
}

}  // namespace

ProfileRequest RequestOf(const ProfileSpec& spec) {
  ProfileRequest request;
  request.name = spec.name;
  request.sign_bits = spec.sign_bits;
  request.projection = KernelEnum<Projection>(spec.projection);
  request.scale_rule = KernelEnum<ScaleRule>(spec.scale_rule);
  request.centering = KernelEnum<Centering>(spec.centering);
  request.num_outliers = spec.num_outliers;
  request.outlier_source = KernelEnum<OutlierSource>(spec.outlier_source);
  request.outlier_sign_bits = spec.outlier_sign_bits;
  request.value_codec = KernelEnum<ValueCodec>(spec.value_codec);
  request.value_scale_rule = KernelEnum<ScaleRule>(spec.value_scale_rule);
  request.value_bits = spec.value_bits;
  request.value_group_size = spec.value_group_size;
  request.seed = spec.seed;
  return request;
}

absl::StatusOr<std::vector<CodecProfile>> ResolveTexts(std::span<const std::string> texts,
                                                       const KvLayout& layout,
                                                       const ModelTables* tables) {
  std::vector<CodecProfile> profiles(layout.num_layers);
  std::vector<bool> covered(layout.num_layers);
  for (const std::string& text : texts) {
    SKETCHKV_ASSIGN_OR_RETURN(const ProfileSpec spec, cli::ParseProfileSpec(text));
    const uint64_t begin = spec.layer_begin;
    const uint64_t end = spec.layer_count == 0 ? layout.num_layers : begin + spec.layer_count;
    if (begin >= end || end > layout.num_layers) {
      return absl::InvalidArgumentError(absl::StrCat("profile '", text, "' is for layers ", begin,
                                                     " to ", end, ", there are ",
                                                     layout.num_layers));
    }
    for (auto layer = static_cast<uint32_t>(begin); layer < end; ++layer) {
      if (covered[layer]) {
        return absl::InvalidArgumentError(
            absl::StrCat("profile '", text, "' is the second for layer ", layer));
      }
      covered[layer] = true;
      SKETCHKV_ASSIGN_OR_RETURN(profiles[layer],
                                ResolveProfile(RequestOf(spec), layout, layer, tables));
    }
  }
  for (uint32_t layer = 0; layer < layout.num_layers; ++layer) {
    if (covered[layer]) continue;
    return absl::InvalidArgumentError(
        absl::StrCat("no profile is given for layer ", layer, " of ", layout.num_layers));
  }
  return profiles;
}

}  // namespace sketchkv::tune
