#include "kernels/profile.h"

#include <algorithm>
#include <string>

#include "absl/strings/str_cat.h"
#include "kernels/base/checked_math.h"
#include "kernels/base/status_macros.h"

namespace sketchkv {
namespace {

constexpr uint32_t kWordBits = 32;
constexpr uint32_t kMaxOutliers = 16;
constexpr uint32_t kMaxValueGroup = 576;
constexpr uint32_t kReleasedGroupTokens = 32;  // QJL's released group of tokens
constexpr uint64_t kDefaultSeed = 0x716A6C2D73656564;

uint32_t WordsUp(uint32_t bits) { return static_cast<uint32_t>(RoundUp(bits, kWordBits)); }

absl::Status OutOfBound(absl::string_view field, uint64_t value, absl::string_view bound) {
  return absl::InvalidArgumentError(absl::StrCat(field, " is ", value, ", must be ", bound));
}

absl::Status CheckRange(absl::string_view field, uint64_t value, uint64_t low, uint64_t high,
                        uint64_t step) {
  if (value >= low && value <= high && value % step == 0) return absl::OkStatus();
  return OutOfBound(field, value,
                    absl::StrCat("a multiple of ", step, " from ", low, " to ", high));
}

absl::Status CheckZero(absl::string_view field, uint64_t value, absl::string_view why) {
  if (value == 0) return absl::OkStatus();
  return OutOfBound(field, value, absl::StrCat("0 ", why));
}

template <typename T>
absl::Status CheckUnset(absl::string_view knob, const std::optional<T>& value,
                        absl::string_view profile) {
  if (!value.has_value()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(knob, " is ", static_cast<uint64_t>(*value),
                                                 ", must be unset for profile '", profile, "'"));
}

absl::Status ValidateOutliers(const CodecProfile& profile, const KvLayout& layout) {
  if (profile.outlier_method == OutlierMethod::kNone) {
    SKETCHKV_RETURN_IF_ERROR(CheckZero("num_outliers", profile.num_outliers, "without outliers"));
    SKETCHKV_RETURN_IF_ERROR(
        CheckZero("outlier_group_tokens", profile.outlier_group_tokens, "without outliers"));
    return CheckZero("outlier_sign_bits", profile.outlier_sign_bits, "without outliers");
  }
  // At least one channel must be left to sketch.
  SKETCHKV_RETURN_IF_ERROR(CheckRange("num_outliers", profile.num_outliers, 1,
                                      std::min(kMaxOutliers, layout.head_dim - 1), 1));
  if (profile.outlier_method == OutlierMethod::kResidual) {
    SKETCHKV_RETURN_IF_ERROR(CheckRange("outlier_group_tokens", profile.outlier_group_tokens,
                                        layout.block_tokens, layout.block_tokens, 1));
    return CheckZero("outlier_sign_bits", profile.outlier_sign_bits, "for the residual method");
  }
  if (profile.outlier_method != OutlierMethod::kSketch) {
    return OutOfBound("outlier_method", static_cast<uint32_t>(profile.outlier_method), "1, 2 or 3");
  }
  SKETCHKV_RETURN_IF_ERROR(CheckRange("outlier_group_tokens", profile.outlier_group_tokens,
                                      kReleasedGroupTokens, kReleasedGroupTokens, 1));
  return CheckRange("outlier_sign_bits", profile.outlier_sign_bits, kWordBits, profile.sign_bits,
                    kWordBits);
}

absl::Status ValidateKeys(const CodecProfile& profile, const KvLayout& layout) {
  if (profile.key_codec == KeyCodec::kRaw) {
    SKETCHKV_RETURN_IF_ERROR(CheckZero("sign_bits", profile.sign_bits, "for raw keys"));
    SKETCHKV_RETURN_IF_ERROR(CheckZero("num_outliers", profile.num_outliers, "for raw keys"));
    SKETCHKV_RETURN_IF_ERROR(
        CheckRange("outlier_method", static_cast<uint32_t>(profile.outlier_method), 1, 1, 1));
    return ValidateOutliers(profile, layout);
  }
  if (profile.key_codec != KeyCodec::kSketch) {
    return OutOfBound("key_codec", static_cast<uint32_t>(profile.key_codec), "1 or 2");
  }
  SKETCHKV_RETURN_IF_ERROR(CheckRange("projection", static_cast<uint32_t>(profile.projection), 1,
                                      static_cast<uint32_t>(Projection::kGaussian), 1));
  SKETCHKV_RETURN_IF_ERROR(CheckRange("scale_rule", static_cast<uint32_t>(profile.scale_rule), 1,
                                      static_cast<uint32_t>(ScaleRule::kNorm), 1));
  SKETCHKV_RETURN_IF_ERROR(CheckRange("sign_bits", profile.sign_bits, WordsUp(layout.head_dim),
                                      WordsUp(8 * layout.head_dim), kWordBits));
  return ValidateOutliers(profile, layout);
}

absl::Status ValidateValues(const CodecProfile& profile, const KvLayout& layout) {
  if (profile.value_codec == ValueCodec::kRaw) {
    SKETCHKV_RETURN_IF_ERROR(CheckZero("value_bits", profile.value_bits, "for raw values"));
    return CheckZero("value_group_size", profile.value_group_size, "for raw values");
  }
  if (profile.value_codec != ValueCodec::kMinMax) {
    return OutOfBound("value_codec", static_cast<uint32_t>(profile.value_codec), "1 or 2");
  }
  const uint32_t bits = profile.value_bits;
  if (bits != 2 && bits != 4 && bits != 8) return OutOfBound("value_bits", bits, "2, 4, 8 or 16");
  return CheckRange("value_group_size", profile.value_group_size, 16, kMaxValueGroup, 16);
}

absl::Status ApplyValueKnobs(const ProfileRequest& request, CodecProfile* profile) {
  const uint32_t bits = request.value_bits.value_or(2);
  if (bits == 16) {
    SKETCHKV_RETURN_IF_ERROR(
        CheckUnset("value_group_size", request.value_group_size, "raw values (value_bits 16)"));
    profile->value_codec = ValueCodec::kRaw;
    return absl::OkStatus();
  }
  profile->value_codec = ValueCodec::kMinMax;
  profile->value_bits = bits;
  profile->value_group_size = request.value_group_size.value_or(32);
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

absl::StatusOr<CodecProfile> ResolveRaw(const ProfileRequest& request) {
  SKETCHKV_RETURN_IF_ERROR(CheckUnset("sign_bits", request.sign_bits, "raw"));
  SKETCHKV_RETURN_IF_ERROR(CheckUnset("projection", request.projection, "raw"));
  SKETCHKV_RETURN_IF_ERROR(CheckUnset("num_outliers", request.num_outliers, "raw"));
  SKETCHKV_RETURN_IF_ERROR(CheckUnset("outlier_sign_bits", request.outlier_sign_bits, "raw"));
  SKETCHKV_RETURN_IF_ERROR(CheckUnset("value_group_size", request.value_group_size, "raw"));
  SKETCHKV_RETURN_IF_ERROR(CheckUnset("seed", request.seed, "raw"));
  if (request.value_bits.value_or(16) != 16) {
    return OutOfBound("value_bits", *request.value_bits, "16 or unset for profile 'raw'");
  }
  CodecProfile profile;
  profile.name = "raw";
  return profile;
}

absl::StatusOr<CodecProfile> ResolveQjl(const ProfileRequest& request, const KvLayout& layout) {
  SKETCHKV_RETURN_IF_ERROR(CheckUnset("outlier_sign_bits", request.outlier_sign_bits, "qjl"));
  CodecProfile profile;
  profile.name = "qjl";
  profile.key_codec = KeyCodec::kSketch;
  profile.projection = request.projection.value_or(Projection::kHadamard);
  profile.scale_rule = ScaleRule::kExact;
  SKETCHKV_RETURN_IF_ERROR(ApplySignBits(request, layout, 2 * layout.head_dim, &profile));
  profile.num_outliers = request.num_outliers.value_or(0);
  if (profile.num_outliers > 0) {
    profile.outlier_method = OutlierMethod::kResidual;
    profile.outlier_group_tokens = layout.block_tokens;
  }
  profile.seed = request.seed.value_or(kDefaultSeed);
  SKETCHKV_RETURN_IF_ERROR(ApplyValueKnobs(request, &profile));
  return profile;
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
  profile.scale_rule = ScaleRule::kNorm;
  SKETCHKV_RETURN_IF_ERROR(ApplySignBits(request, layout, early ? 4 * d : 2 * d, &profile));
  profile.num_outliers = request.num_outliers.value_or(8);
  profile.seed = request.seed.value_or(kDefaultSeed);
  SKETCHKV_RETURN_IF_ERROR(ApplyValueKnobs(request, &profile));
  if (profile.num_outliers == 0) {
    SKETCHKV_RETURN_IF_ERROR(
        CheckUnset("outlier_sign_bits", request.outlier_sign_bits, "qjl-paper without outliers"));
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

absl::Status ValidateProfile(const CodecProfile& profile, const KvLayout& layout) {
  SKETCHKV_RETURN_IF_ERROR(CheckZero("profile version", profile.version, "in this release"));
  if (layout.value_source == ValueSource::kKeyPrefix &&
      (profile.key_codec != KeyCodec::kRaw || profile.value_codec != ValueCodec::kRaw)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "profile is '", profile.name, "', must be 'raw' when value_source is key_prefix"));
  }
  SKETCHKV_RETURN_IF_ERROR(ValidateKeys(profile, layout));
  return ValidateValues(profile, layout);
}

absl::StatusOr<CodecProfile> ResolveProfile(const ProfileRequest& request, const KvLayout& layout,
                                            uint32_t layer) {
  SKETCHKV_RETURN_IF_ERROR(layout.Validate());
  if (layer >= layout.num_layers) {
    return OutOfBound("layer", layer, absl::StrCat("below num_layers (", layout.num_layers, ")"));
  }
  absl::StatusOr<CodecProfile> profile = absl::InvalidArgumentError(
      absl::StrCat("profile is '", request.name, "', must be one of raw, qjl, qjl-paper"));
  if (request.name == "raw") profile = ResolveRaw(request);
  if (request.name == "qjl") profile = ResolveQjl(request, layout);
  if (request.name == "qjl-paper") profile = ResolveQjlPaper(request, layout, layer);
  if (!profile.ok()) return profile;
  SKETCHKV_RETURN_IF_ERROR(ValidateProfile(*profile, layout));
  return profile;
}

}  // namespace sketchkv
