#include "kernels/profile.h"

#include <algorithm>
#include <string>

#include "absl/strings/str_cat.h"
#include "kernels/base/checked_math.h"
#include "kernels/base/status_macros.h"
#include "kernels/format.h"
#include "kernels/tables.h"

namespace sketchkv {
namespace {

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
  const std::string bound = absl::StrCat("from ", low, " to ", high);
  return OutOfBound(field, value,
                    step == 1 ? bound : absl::StrCat("a multiple of ", step, " ", bound));
}

absl::Status CheckZero(absl::string_view field, uint64_t value, absl::string_view why) {
  if (value == 0) return absl::OkStatus();
  return OutOfBound(field, value, absl::StrCat("0 ", why));
}

template <typename T>
absl::Status CheckUnset(absl::string_view knob, const std::optional<T>& value,
                        absl::string_view what) {
  if (!value.has_value()) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(knob, " is ", static_cast<uint64_t>(*value), ", must be unset for ", what));
}

absl::Status CheckEnum(absl::string_view field, uint32_t value, uint32_t last) {
  return CheckRange(field, value, 1, last, 1);
}

bool UsesSeed(const CodecProfile& profile) {
  const bool keys = profile.key_codec != KeyCodec::kRaw && profile.projection != Projection::kBasis;
  return keys || profile.value_codec == ValueCodec::kRotated;
}

// A registered basis is for klt's keys alone.
absl::Status CheckNoBasis(const CodecProfile& profile) {
  if (profile.projection != Projection::kBasis) return absl::OkStatus();
  return OutOfBound("projection", static_cast<uint32_t>(Projection::kBasis),
                    "1, 2 or 3 for this profile; 'klt' uses a registered basis");
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
