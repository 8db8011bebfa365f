#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "kernels/layout.h"

namespace sketchkv {

class ModelTables;

// kSketch: one sign bit a row of an m x d projection (QJL). kCodes: scalar codes of 1-4 bits of
// orthogonal projections: QJL's signs refined by further planes.
enum class KeyCodec : uint8_t { kRaw = 1, kSketch = 2, kCodes = 3 };
// The m x d projection S. kHadamard: blocks of d orthogonal rows, a fixed orthogonal transform
// (Walsh-Hadamard, tensored with a DCT when d is not a power of two) after a random sign diagonal.
// kOrthogonal: dense, QR of a Gaussian per d rows, times sqrt(d). kGaussian: iid N(0,1), dense.
// kBasis: dense orthonormal rows registered with the model, of each (layer, kv head) its own.
enum class Projection : uint8_t { kHadamard = 1, kOrthogonal = 2, kGaussian = 3, kBasis = 4 };
// y = S k, z what the bits say of y. kExact: |k|^2 / <y, z>, exact along k and so unbiased (of a
// basis that leaves coordinates out, |y|^2 / <y, z>: exact along what it keeps of k). kNorm:
// sqrt(pi/2)/m * |k| (QJL, arXiv 2406.03482). kLeastSquares: <y, z> / |S^T z|^2, the least
// squared error, which shrinks.
enum class ScaleRule : uint8_t { kExact = 1, kNorm = 2, kLeastSquares = 3 };
// A mean taken out of the keys; its score is added back exactly. kTable: registered with the model,
// costs no bits. kBlock: of the block's own tokens, stored in each cell as bf16 [head_dim].
enum class Centering : uint8_t { kNone = 1, kTable = 2, kBlock = 3 };
// kResidual: int8 of k_o minus the sketch's own reconstruction at the outlier channels.
// kSketch: a second sign sketch of the outlier channels, queries masked per group of tokens (QJL's
// released code).
enum class OutlierMethod : uint8_t { kNone = 1, kResidual = 2, kSketch = 3 };
// Who chooses the outlier channels: each block its own, by energy, or the registered table.
enum class OutlierSource : uint8_t { kBlock = 1, kTable = 2 };
// kMinMax: per token and group of channels. kRotated: codes after a randomized Hadamard, one scale
// a token. kBasis: the same after the registered basis, bits allotted by it.
enum class ValueCodec : uint8_t { kRaw = 1, kMinMax = 2, kRotated = 3, kBasis = 4 };

// A fully resolved codec setting of one layer: everything the stored bytes depend on besides the
// layout and the registered tables. Fields that do not apply to the chosen codecs are 0.
struct CodecProfile {
  std::string name;      // "raw", "qjl", "qjl-paper", "qjl2p", "qjl3p", "qjl4p", "klt"
  uint32_t version = 1;  // of the named profile's meaning
  KeyCodec key_codec = KeyCodec::kRaw;
  Projection projection = Projection::kHadamard;
  ScaleRule scale_rule = ScaleRule::kExact;
  Centering centering = Centering::kNone;
  uint32_t sign_bits = 0;     // kSketch: m, a multiple of 32, head_dim..8*head_dim (rounded up)
  uint32_t code_bits = 0;     // kCodes: 2, 3 or 4 of each coordinate; 0 when the table allots them
  uint32_t key_row_bits = 0;  // kCodes: stored bits of a key's planes, a multiple of 32
  OutlierMethod outlier_method = OutlierMethod::kNone;
  OutlierSource outlier_source = OutlierSource::kBlock;
  uint32_t num_outliers = 0;          // 0-16 channels a head
  uint32_t outlier_sign_bits = 0;     // kSketch: bits of the second sketch, a multiple of 32, <= m
  uint32_t outlier_group_tokens = 0;  // tokens sharing a choice of channels; kResidual: the block
  ValueCodec value_codec = ValueCodec::kRaw;
  ScaleRule value_scale_rule = ScaleRule::kExact;  // kRotated, kBasis: kExact or kLeastSquares
  uint32_t value_bits = 0;                         // kMinMax: 2, 4 or 8; kRotated: 2, 3 or 4
  uint32_t value_row_bits = 0;    // kBasis: stored code bits of a value row, a multiple of 32
  uint32_t value_group_size = 0;  // channels sharing one minimum and scale; the last may be shorter
  uint64_t seed = 0;              // of the projections

  // Whether stored bytes depend on the registered tables.
  [[nodiscard]] bool uses_tables() const {
    return projection == Projection::kBasis || centering == Centering::kTable ||
           outlier_source == OutlierSource::kTable || value_codec == ValueCodec::kBasis;
  }

  bool operator==(const CodecProfile&) const = default;
};

inline constexpr absl::string_view kDefaultProfile = "qjl3p";

// What a caller asks for: a name and optional knobs. Unset knobs take the named profile's defaults.
struct ProfileRequest {
  std::string name = std::string(kDefaultProfile);
  std::optional<uint32_t> sign_bits;
  std::optional<Projection> projection;
  std::optional<ScaleRule> scale_rule;
  std::optional<Centering> centering;
  std::optional<uint32_t> num_outliers;
  std::optional<OutlierSource> outlier_source;
  std::optional<uint32_t> outlier_sign_bits;
  std::optional<ValueCodec> value_codec;
  std::optional<ScaleRule> value_scale_rule;
  std::optional<uint32_t> value_bits;  // as CodecProfile's, or 16 for the model's raw values
  std::optional<uint32_t> value_group_size;
  std::optional<uint64_t> seed;
};

// Resolves `request` for `layer` of `layout`; `tables` are the model's registered ones, null when
// there are none. `qjl-paper` takes m = 4d for the first round(15/32 * num_layers) layers and
// m = 2d after them, as the released defaults do for 32 layers. `klt` takes its row bits from the
// tables. INVALID_ARGUMENT names the knob, the value and its bound.
[[nodiscard]] absl::StatusOr<CodecProfile> ResolveProfile(const ProfileRequest& request,
                                                          const KvLayout& layout, uint32_t layer,
                                                          const ModelTables* tables = nullptr);

// Checks a resolved profile, wherever it came from, against a valid layout. INVALID_ARGUMENT names
// the field, the value and its bound; a field that does not apply must be 0. What a profile wants
// of the tables is checked by ModelTables::CheckServes.
[[nodiscard]] absl::Status ValidateProfile(const CodecProfile& profile, const KvLayout& layout);

}  // namespace sketchkv
