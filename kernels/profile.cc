#include "kernels/profile.h"

#include <algorithm>
#include <string>

#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"
#include "kernels/profile_checks.h"

namespace sketchkv {

absl::Status OutOfBound(absl::string_view field, uint64_t value, absl::string_view bound) {
  return absl::InvalidArgumentError(absl::StrCat(field, " is ", value, ", must be ", bound));
}

absl::Status CheckRange(absl::string_view field, uint64_t value, uint64_t low, uint64_t high,
                        uint64_t step) {
  if (value >= low && value <= high && value % step == 0) return absl::OkStatus();
  const std::string bound = absl::StrCat("from ", low, " to ", high);
  return OutOfBound(field, value,
                    step == 1 ? bound : absl::StrCat("a multiple of ", step, " ", bound));
}

bool UsesSeed(const CodecProfile& profile) {
  const bool keys = profile.key_codec != KeyCodec::kRaw && profile.projection != Projection::kBasis;
  return keys || profile.value_codec == ValueCodec::kRotated;
}

namespace {

constexpr uint32_t kMaxOutliers = 16;
constexpr uint32_t kMaxValueGroup = 576;

absl::Status CheckZero(absl::string_view field, uint64_t value, absl::string_view why) {
  if (value == 0) return absl::OkStatus();
  return OutOfBound(field, value, absl::StrCat("0 ", why));
}

absl::Status CheckEnum(absl::string_view field, uint32_t value, uint32_t last) {
  return CheckRange(field, value, 1, last, 1);
}

absl::Status ValidateOutliers(const CodecProfile& profile, const KvLayout& layout) {
  SKETCHKV_RETURN_IF_ERROR(
      CheckEnum("outlier_source", static_cast<uint32_t>(profile.outlier_source), 2));
  if (profile.outlier_method == OutlierMethod::kNone) {
    SKETCHKV_RETURN_IF_ERROR(CheckZero("num_outliers", profile.num_outliers, "without outliers"));
    SKETCHKV_RETURN_IF_ERROR(
        CheckZero("outlier_group_tokens", profile.outlier_group_tokens, "without outliers"));
    SKETCHKV_RETURN_IF_ERROR(
        CheckRange("outlier_source", static_cast<uint32_t>(profile.outlier_source), 1, 1, 1));
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
  SKETCHKV_RETURN_IF_ERROR(
      CheckEnum("outlier_method", static_cast<uint32_t>(profile.outlier_method), 3));
  if (profile.key_codec != KeyCodec::kSketch) {
    return OutOfBound("outlier_method", 3, "1 or 2 unless keys are a sign sketch");
  }
  SKETCHKV_RETURN_IF_ERROR(
      CheckRange("outlier_source", static_cast<uint32_t>(profile.outlier_source), 1, 1, 1));
  SKETCHKV_RETURN_IF_ERROR(CheckRange("outlier_group_tokens", profile.outlier_group_tokens,
                                      kReleasedGroupTokens, kReleasedGroupTokens, 1));
  return CheckRange("outlier_sign_bits", profile.outlier_sign_bits, kWordBits, profile.sign_bits,
                    kWordBits);
}

absl::Status ValidateCodes(const CodecProfile& profile, const KvLayout& layout) {
  SKETCHKV_RETURN_IF_ERROR(CheckZero("sign_bits", profile.sign_bits, "for key codes"));
  if (profile.scale_rule == ScaleRule::kNorm) {
    return OutOfBound("scale_rule", static_cast<uint32_t>(ScaleRule::kNorm),
                      "1 or 3 for key codes");
  }
  if (profile.projection == Projection::kBasis) {
    SKETCHKV_RETURN_IF_ERROR(CheckZero("code_bits", profile.code_bits, "for a registered basis"));
    SKETCHKV_RETURN_IF_ERROR(CheckZero("num_outliers", profile.num_outliers,
                                       "for a registered basis, which gives them bits of its own"));
    if (profile.centering == Centering::kBlock) {
      return OutOfBound("centering", static_cast<uint32_t>(Centering::kBlock),
                        "1 or 2 for a registered basis");
    }
    const uint32_t most = KeyWords(layout.head_dim, 4) * kWordBits;
    return CheckRange("key_row_bits", profile.key_row_bits, kWordBits, most, kWordBits);
  }
  if (profile.projection == Projection::kGaussian) {
    return OutOfBound("projection", static_cast<uint32_t>(Projection::kGaussian),
                      "1, 2 or 4 for key codes, whose rows must be orthogonal");
  }
  SKETCHKV_RETURN_IF_ERROR(CheckRange("code_bits", profile.code_bits, 2, 4, 1));
  const uint32_t bits = KeyWords(layout.head_dim, profile.code_bits) * kWordBits;
  return CheckRange("key_row_bits", profile.key_row_bits, bits, bits, 1);
}

absl::Status ValidateKeys(const CodecProfile& profile, const KvLayout& layout) {
  SKETCHKV_RETURN_IF_ERROR(CheckEnum("projection", static_cast<uint32_t>(profile.projection), 4));
  SKETCHKV_RETURN_IF_ERROR(CheckEnum("scale_rule", static_cast<uint32_t>(profile.scale_rule), 3));
  SKETCHKV_RETURN_IF_ERROR(CheckEnum("centering", static_cast<uint32_t>(profile.centering), 3));
  if (profile.key_codec == KeyCodec::kRaw) {
    SKETCHKV_RETURN_IF_ERROR(CheckZero("sign_bits", profile.sign_bits, "for raw keys"));
    SKETCHKV_RETURN_IF_ERROR(CheckZero("code_bits", profile.code_bits, "for raw keys"));
    SKETCHKV_RETURN_IF_ERROR(CheckZero("key_row_bits", profile.key_row_bits, "for raw keys"));
    SKETCHKV_RETURN_IF_ERROR(CheckZero("num_outliers", profile.num_outliers, "for raw keys"));
    SKETCHKV_RETURN_IF_ERROR(
        CheckRange("outlier_method", static_cast<uint32_t>(profile.outlier_method), 1, 1, 1));
    SKETCHKV_RETURN_IF_ERROR(
        CheckRange("centering", static_cast<uint32_t>(profile.centering), 1, 1, 1));
    SKETCHKV_RETURN_IF_ERROR(
        CheckRange("projection", static_cast<uint32_t>(profile.projection), 1, 1, 1));
    SKETCHKV_RETURN_IF_ERROR(
        CheckRange("scale_rule", static_cast<uint32_t>(profile.scale_rule), 1, 1, 1));
    return ValidateOutliers(profile, layout);
  }
  SKETCHKV_RETURN_IF_ERROR(CheckEnum("key_codec", static_cast<uint32_t>(profile.key_codec), 3));
  if (profile.key_codec == KeyCodec::kCodes) {
    SKETCHKV_RETURN_IF_ERROR(ValidateCodes(profile, layout));
    return ValidateOutliers(profile, layout);
  }
  SKETCHKV_RETURN_IF_ERROR(CheckZero("code_bits", profile.code_bits, "for a sign sketch"));
  SKETCHKV_RETURN_IF_ERROR(CheckZero("key_row_bits", profile.key_row_bits, "for a sign sketch"));
  if (profile.projection == Projection::kBasis) {
    return OutOfBound("projection", static_cast<uint32_t>(Projection::kBasis),
                      "1, 2 or 3 for a sign sketch");
  }
  if (profile.scale_rule == ScaleRule::kLeastSquares) {
    return OutOfBound("scale_rule", static_cast<uint32_t>(ScaleRule::kLeastSquares),
                      "1 or 2 for a sign sketch");
  }
  if (profile.outlier_method == OutlierMethod::kSketch && profile.centering != Centering::kNone) {
    return OutOfBound("centering", static_cast<uint32_t>(profile.centering),
                      "1 with a second sketch");
  }
  SKETCHKV_RETURN_IF_ERROR(CheckRange("sign_bits", profile.sign_bits, WordsUp(layout.head_dim),
                                      WordsUp(8 * layout.head_dim), kWordBits));
  return ValidateOutliers(profile, layout);
}

absl::Status ValidateValues(const CodecProfile& profile, const KvLayout& layout) {
  SKETCHKV_RETURN_IF_ERROR(CheckEnum("value_codec", static_cast<uint32_t>(profile.value_codec), 4));
  const uint32_t bits = profile.value_bits;
  const bool rotated =
      profile.value_codec == ValueCodec::kRotated || profile.value_codec == ValueCodec::kBasis;
  const bool exact = profile.value_scale_rule == ScaleRule::kExact;
  if (!exact && !(rotated && profile.value_scale_rule == ScaleRule::kLeastSquares)) {
    return OutOfBound("value_scale_rule", static_cast<uint32_t>(profile.value_scale_rule),
                      rotated ? "1 or 3" : "1 unless values are rotated");
  }
  if (profile.value_codec != ValueCodec::kMinMax) {
    SKETCHKV_RETURN_IF_ERROR(
        CheckZero("value_group_size", profile.value_group_size, "unless values are min-max"));
  }
  if (profile.value_codec == ValueCodec::kBasis) {
    SKETCHKV_RETURN_IF_ERROR(CheckZero("value_bits", bits, "for a registered basis"));
    const uint32_t most = ValueLines(layout.value_dim, 4) * kWordBits;
    return CheckRange("value_row_bits", profile.value_row_bits, kWordBits, most, kWordBits);
  }
  SKETCHKV_RETURN_IF_ERROR(
      CheckZero("value_row_bits", profile.value_row_bits, "without a registered basis"));
  if (profile.value_codec == ValueCodec::kRaw)
    return CheckZero("value_bits", bits, "for raw values");
  if (profile.value_codec == ValueCodec::kRotated) return CheckRange("value_bits", bits, 2, 4, 1);
  if (bits != 2 && bits != 4 && bits != 8) {
    return OutOfBound("value_bits", bits, "2, 4 or 8 for min-max values");
  }
  return CheckRange("value_group_size", profile.value_group_size, 16, kMaxValueGroup, 16);
}

}  // namespace

absl::Status ValidateProfile(const CodecProfile& profile, const KvLayout& layout) {
  SKETCHKV_RETURN_IF_ERROR(CheckRange("profile version", profile.version, 1, 1, 1));
  if (layout.value_source == ValueSource::kKeyPrefix &&
      (profile.key_codec != KeyCodec::kRaw || profile.value_codec != ValueCodec::kRaw)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "profile is '", profile.name, "', must be 'raw' when value_source is key_prefix"));
  }
  SKETCHKV_RETURN_IF_ERROR(ValidateKeys(profile, layout));
  SKETCHKV_RETURN_IF_ERROR(ValidateValues(profile, layout));
  return UsesSeed(profile) ? absl::OkStatus()
                           : CheckZero("seed", profile.seed, "where nothing is projected by it");
}

}  // namespace sketchkv
