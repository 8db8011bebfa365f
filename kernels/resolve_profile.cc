#include <algorithm>
#include <string>

#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"
#include "kernels/profile_checks.h"
#include "kernels/tables.h"

namespace sketchkv {
namespace {

constexpr uint64_t kDefaultSeed = 0x716A6C2D73656564;

template <typename T>
absl::Status CheckUnset(absl::string_view knob, const std::optional<T>& value,
                        absl::string_view what) {
  if (!value.has_value()) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(knob, " is ", static_cast<uint64_t>(*value), ", must be unset for ", what));
}

// A registered basis is for klt's keys alone.
absl::Status CheckNoBasis(const CodecProfile& profile) {
  if (profile.projection != Projection::kBasis) return absl::OkStatus();
  return OutOfBound("projection", static_cast<uint32_t>(Projection::kBasis),
                    "1, 2 or 3 for this profile; 'klt' uses a registered basis");
}

absl::Status ApplyValueKnobs(const ProfileRequest& request, ValueCodec fallback,
                             CodecProfile* profile) {
  ValueCodec codec = request.value_codec.value_or(fallback);
  if (request.value_bits.value_or(0) == 16 && !request.value_codec) codec = ValueCodec::kRaw;
  profile->value_codec = codec;
  profile->value_scale_rule = request.value_scale_rule.value_or(ScaleRule::kExact);
  if (codec != ValueCodec::kMinMax) {
    SKETCHKV_RETURN_IF_ERROR(
        CheckUnset("value_group_size", request.value_group_size, "values that are not min-max"));
  }
  if (codec == ValueCodec::kRaw) {
    if (request.value_bits.value_or(16) == 16) return absl::OkStatus();
    return OutOfBound("value_bits", *request.value_bits, "16 or unset for raw values");
  }
  if (codec == ValueCodec::kBasis) {
    return CheckUnset("value_bits", request.value_bits, "values in the registered basis");
  }
  profile->value_bits = request.value_bits.value_or(2);
  if (codec == ValueCodec::kMinMax) {
    profile->value_group_size = request.value_group_size.value_or(32);
  }
  return absl::OkStatus();
}

// Bounds before rounding up, so that no knob overflows the rounding.
absl::Status ApplySignBits(const ProfileRequest& request, const KvLayout& layout, uint32_t fallback,
                           CodecProfile* profile) {
  const uint32_t bits = request.sign_bits.value_or(fallback);
  SKETCHKV_RETURN_IF_ERROR(
      CheckRange("sign_bits", bits, layout.head_dim, WordsUp(8 * layout.head_dim), 1));
  profile->sign_bits = WordsUp(bits);
  return absl::OkStatus();
}

absl::Status ApplyResidualKnobs(const ProfileRequest& request, const KvLayout& layout,
                                CodecProfile* profile) {
  profile->num_outliers = request.num_outliers.value_or(0);
  if (profile->num_outliers == 0) {
    return CheckUnset("outlier_source", request.outlier_source, "no outliers");
  }
  profile->outlier_method = OutlierMethod::kResidual;
  profile->outlier_source = request.outlier_source.value_or(OutlierSource::kBlock);
  profile->outlier_group_tokens = layout.block_tokens;
  return absl::OkStatus();
}

absl::StatusOr<CodecProfile> ResolveRaw(const ProfileRequest& request) {
  SKETCHKV_RETURN_IF_ERROR(CheckUnset("sign_bits", request.sign_bits, "profile 'raw'"));
  SKETCHKV_RETURN_IF_ERROR(CheckUnset("projection", request.projection, "profile 'raw'"));
  SKETCHKV_RETURN_IF_ERROR(CheckUnset("scale_rule", request.scale_rule, "profile 'raw'"));
  SKETCHKV_RETURN_IF_ERROR(CheckUnset("centering", request.centering, "profile 'raw'"));
  SKETCHKV_RETURN_IF_ERROR(CheckUnset("num_outliers", request.num_outliers, "profile 'raw'"));
  SKETCHKV_RETURN_IF_ERROR(CheckUnset("outlier_source", request.outlier_source, "profile 'raw'"));
  SKETCHKV_RETURN_IF_ERROR(
      CheckUnset("outlier_sign_bits", request.outlier_sign_bits, "profile 'raw'"));
  SKETCHKV_RETURN_IF_ERROR(
      CheckUnset("value_scale_rule", request.value_scale_rule, "profile 'raw'"));
  SKETCHKV_RETURN_IF_ERROR(
      CheckUnset("value_group_size", request.value_group_size, "profile 'raw'"));
  SKETCHKV_RETURN_IF_ERROR(CheckUnset("seed", request.seed, "profile 'raw'"));
  if (request.value_codec.value_or(ValueCodec::kRaw) != ValueCodec::kRaw) {
    return OutOfBound("value_codec", static_cast<uint32_t>(*request.value_codec),
                      "1 or unset for profile 'raw'");
  }
  if (request.value_bits.value_or(16) != 16) {
    return OutOfBound("value_bits", *request.value_bits, "16 or unset for profile 'raw'");
  }
  CodecProfile profile;
  profile.name = "raw";
  return profile;
}

absl::StatusOr<CodecProfile> ResolveQjl(const ProfileRequest& request, const KvLayout& layout) {
  SKETCHKV_RETURN_IF_ERROR(
      CheckUnset("outlier_sign_bits", request.outlier_sign_bits, "profile 'qjl'"));
  CodecProfile profile;
  profile.name = "qjl";
  profile.key_codec = KeyCodec::kSketch;
  profile.projection = request.projection.value_or(Projection::kHadamard);
  SKETCHKV_RETURN_IF_ERROR(CheckNoBasis(profile));
  profile.scale_rule = request.scale_rule.value_or(ScaleRule::kExact);
  profile.centering = request.centering.value_or(Centering::kNone);
  SKETCHKV_RETURN_IF_ERROR(ApplySignBits(request, layout, 2 * layout.head_dim, &profile));
  SKETCHKV_RETURN_IF_ERROR(ApplyResidualKnobs(request, layout, &profile));
  profile.seed = request.seed.value_or(kDefaultSeed);
  SKETCHKV_RETURN_IF_ERROR(ApplyValueKnobs(request, ValueCodec::kMinMax, &profile));
  return profile;
}

// qjl2p, qjl3p, qjl4p: QJL's signs with m = d, and one to three refinement planes.
absl::StatusOr<CodecProfile> ResolveCodes(const ProfileRequest& request, const KvLayout& layout,
                                          uint32_t code_bits) {
  SKETCHKV_RETURN_IF_ERROR(
      CheckUnset("sign_bits", request.sign_bits, absl::StrCat("profile '", request.name, "'")));
  SKETCHKV_RETURN_IF_ERROR(CheckUnset("outlier_sign_bits", request.outlier_sign_bits,
                                      absl::StrCat("profile '", request.name, "'")));
  CodecProfile profile;
  profile.name = request.name;
  profile.key_codec = KeyCodec::kCodes;
  profile.projection = request.projection.value_or(Projection::kHadamard);
  SKETCHKV_RETURN_IF_ERROR(CheckNoBasis(profile));
  profile.scale_rule = request.scale_rule.value_or(ScaleRule::kExact);
  profile.centering = request.centering.value_or(Centering::kNone);
  profile.code_bits = code_bits;
  profile.key_row_bits = KeyWords(layout.head_dim, code_bits) * kWordBits;
  SKETCHKV_RETURN_IF_ERROR(ApplyResidualKnobs(request, layout, &profile));
  profile.seed = request.seed.value_or(kDefaultSeed);
  SKETCHKV_RETURN_IF_ERROR(ApplyValueKnobs(request, ValueCodec::kRotated, &profile));
  return profile;
}

// Codes in the registered Karhunen-Loeve basis of each head, bits allotted by it.
absl::StatusOr<CodecProfile> ResolveKlt(const ProfileRequest& request) {
  SKETCHKV_RETURN_IF_ERROR(CheckUnset("sign_bits", request.sign_bits, "profile 'klt'"));
  SKETCHKV_RETURN_IF_ERROR(CheckUnset("projection", request.projection, "profile 'klt'"));
  SKETCHKV_RETURN_IF_ERROR(CheckUnset("num_outliers", request.num_outliers, "profile 'klt'"));
  SKETCHKV_RETURN_IF_ERROR(CheckUnset("outlier_source", request.outlier_source, "profile 'klt'"));
  SKETCHKV_RETURN_IF_ERROR(
      CheckUnset("outlier_sign_bits", request.outlier_sign_bits, "profile 'klt'"));
  CodecProfile profile;
  profile.name = "klt";
  profile.key_codec = KeyCodec::kCodes;
  profile.projection = Projection::kBasis;
  profile.scale_rule = request.scale_rule.value_or(ScaleRule::kExact);
  profile.centering = request.centering.value_or(Centering::kTable);
  SKETCHKV_RETURN_IF_ERROR(ApplyValueKnobs(request, ValueCodec::kBasis, &profile));
  if (!UsesSeed(profile)) {
    SKETCHKV_RETURN_IF_ERROR(CheckUnset("seed", request.seed, "klt without rotated values"));
  } else {
    profile.seed = request.seed.value_or(kDefaultSeed);
  }
  return profile;
}

// What the tables say of a profile that uses them.
absl::Status ApplyTables(const ModelTables* tables, const KvLayout& layout, uint32_t layer,
                         CodecProfile* profile) {
  if (tables == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat("profile '", profile->name,
                                                   "' as asked for needs registered tables, 0 are "
                                                   "given ('sketchkv tune' makes them)"));
  }
  SKETCHKV_RETURN_IF_ERROR(tables->CheckShape(layout));
  const HeadTable& head = tables->at(layer, 0);
  if (profile->projection == Projection::kBasis) {
    profile->key_row_bits = KeyRowBits(head.key_basis, layout.head_dim);
  }
  if (profile->value_codec == ValueCodec::kBasis) {
    profile->value_row_bits = ValueRowBits(head.value_basis, layout.value_dim);
  }
  return tables->CheckServes(*profile, layout, layer);
}

absl::StatusOr<CodecProfile> ResolveQjlPaper(const ProfileRequest& request, const KvLayout& layout,
                                             uint32_t layer) {
  // The released code gives the first 15 of 32 layers twice the bits; scaled and rounded here.
  const bool early = layer < (15 * layout.num_layers + 16) / 32;
  const uint32_t d = layout.head_dim;
  CodecProfile profile;
  profile.name = "qjl-paper";
  profile.key_codec = KeyCodec::kSketch;
  profile.projection = request.projection.value_or(Projection::kOrthogonal);
  SKETCHKV_RETURN_IF_ERROR(CheckNoBasis(profile));
  profile.scale_rule = ScaleRule::kNorm;
  SKETCHKV_RETURN_IF_ERROR(CheckUnset("scale_rule", request.scale_rule, "profile 'qjl-paper'"));
  SKETCHKV_RETURN_IF_ERROR(CheckUnset("centering", request.centering, "profile 'qjl-paper'"));
  SKETCHKV_RETURN_IF_ERROR(
      CheckUnset("outlier_source", request.outlier_source, "profile 'qjl-paper'"));
  SKETCHKV_RETURN_IF_ERROR(ApplySignBits(request, layout, early ? 4 * d : 2 * d, &profile));
  profile.num_outliers = request.num_outliers.value_or(8);
  profile.seed = request.seed.value_or(kDefaultSeed);
  SKETCHKV_RETURN_IF_ERROR(ApplyValueKnobs(request, ValueCodec::kMinMax, &profile));
  if (profile.num_outliers == 0) {
    SKETCHKV_RETURN_IF_ERROR(CheckUnset("outlier_sign_bits", request.outlier_sign_bits,
                                        "profile 'qjl-paper' without outliers"));
    return profile;
  }
  profile.outlier_method = OutlierMethod::kSketch;
  profile.outlier_group_tokens = kReleasedGroupTokens;
  const uint32_t fallback = std::min(early ? d : 2 * d, profile.sign_bits);
  const uint32_t bits = request.outlier_sign_bits.value_or(fallback);
  SKETCHKV_RETURN_IF_ERROR(CheckRange("outlier_sign_bits", bits, 1, profile.sign_bits, 1));
  profile.outlier_sign_bits = WordsUp(bits);
  return profile;
}

}  // namespace

absl::StatusOr<CodecProfile> ResolveProfile(const ProfileRequest& request, const KvLayout& layout,
                                            uint32_t layer, const ModelTables* tables) {
  SKETCHKV_RETURN_IF_ERROR(layout.Validate());
  if (layer >= layout.num_layers) {
    return OutOfBound("layer", layer, absl::StrCat("below num_layers (", layout.num_layers, ")"));
  }
  absl::StatusOr<CodecProfile> profile = absl::InvalidArgumentError(
      absl::StrCat("profile is '", request.name,
                   "', must be one of raw, qjl, qjl-paper, qjl2p, qjl3p, qjl4p, klt"));
  if (request.name == "raw") profile = ResolveRaw(request);
  if (request.name == "qjl") profile = ResolveQjl(request, layout);
  if (request.name == "qjl-paper") profile = ResolveQjlPaper(request, layout, layer);
  if (request.name == "qjl2p") profile = ResolveCodes(request, layout, 2);
  if (request.name == "qjl3p") profile = ResolveCodes(request, layout, 3);
  if (request.name == "qjl4p") profile = ResolveCodes(request, layout, 4);
  if (request.name == "klt") profile = ResolveKlt(request);
  if (!profile.ok()) return profile;
  if (profile->uses_tables()) {
    SKETCHKV_RETURN_IF_ERROR(ApplyTables(tables, layout, layer, &*profile));
  }
  SKETCHKV_RETURN_IF_ERROR(ValidateProfile(*profile, layout));
  return profile;
}

}  // namespace sketchkv
