#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "kernels/layout.h"

namespace sketchkv {

enum class KeyCodec : uint8_t { kRaw = 1, kSketch = 2 };
// The m x d projection S. kHadamard: blocks of d orthogonal rows, a fixed orthogonal transform
// (Walsh-Hadamard, tensored with a DCT when d is not a power of two) after a random sign diagonal.
// kOrthogonal: dense, QR of a Gaussian per d rows, times sqrt(d). kGaussian: iid N(0,1), dense.
enum class Projection : uint8_t { kHadamard = 1, kOrthogonal = 2, kGaussian = 3 };
// kExact: |k|^2 / <S k, bits>, exact along k. kNorm: sqrt(pi/2)/m * |k| (QJL, arXiv 2406.03482).
enum class ScaleRule : uint8_t { kExact = 1, kNorm = 2 };
// kResidual: int8 of k_o minus the sketch's own reconstruction at the outlier channels.
// kSketch: a second sign sketch of the outlier channels, queries masked per group of tokens (QJL's
// released code).
enum class OutlierMethod : uint8_t { kNone = 1, kResidual = 2, kSketch = 3 };
enum class ValueCodec : uint8_t { kRaw = 1, kMinMax = 2 };

// A fully resolved codec setting of one layer: everything the stored bytes depend on besides the
// layout. Fields that do not apply to the chosen codecs are 0.
struct CodecProfile {
  std::string name;      // "raw", "qjl", "qjl-paper"
  uint32_t version = 0;  // of the named profile's meaning
  KeyCodec key_codec = KeyCodec::kRaw;
  Projection projection = Projection::kHadamard;
  ScaleRule scale_rule = ScaleRule::kExact;
  uint32_t sign_bits = 0;  // m, a multiple of 32, head_dim..8*head_dim (rounded up to a word)
  OutlierMethod outlier_method = OutlierMethod::kNone;
  uint32_t num_outliers = 0;         // 0-16 channels a head
  uint32_t outlier_sign_bits = 0;    // kSketch: bits of the second sketch, a multiple of 32, <= m
  uint32_t outlier_group_tokens = 0; // tokens sharing one choice of channels; kResidual: the block
  ValueCodec value_codec = ValueCodec::kRaw;
  uint32_t value_bits = 0;        // 2, 4 or 8
  uint32_t value_group_size = 0;  // channels sharing one minimum and scale; the last may be shorter
  uint64_t seed = 0;              // of the projection

  bool operator==(const CodecProfile&) const = default;
};

// What a caller asks for: a name and optional knobs. Unset knobs take the named profile's defaults.
struct ProfileRequest {
  std::string name = "qjl";
  std::optional<uint32_t> sign_bits;
  std::optional<Projection> projection;
  std::optional<uint32_t> num_outliers;
  std::optional<uint32_t> outlier_sign_bits;
  std::optional<uint32_t> value_bits;  // 2, 4, 8, or 16 for the model's raw values
  std::optional<uint32_t> value_group_size;
  std::optional<uint64_t> seed;
};

// Resolves `request` for `layer` of `layout`. `qjl-paper` takes m = 4d for the first
// round(15/32 * num_layers) layers and m = 2d after them, as the released defaults do for 32 layers.
// INVALID_ARGUMENT names the knob, the value and its bound.
[[nodiscard]] absl::StatusOr<CodecProfile> ResolveProfile(const ProfileRequest& request,
                                                          const KvLayout& layout, uint32_t layer);

// Checks a resolved profile, wherever it came from, against a valid layout. INVALID_ARGUMENT names
// the field, the value and its bound; a field that does not apply must be 0.
[[nodiscard]] absl::Status ValidateProfile(const CodecProfile& profile, const KvLayout& layout);

}  // namespace sketchkv
