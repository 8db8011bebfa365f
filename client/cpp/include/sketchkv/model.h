#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

// What a model is: its layout, codec profiles and tables. Words are those of the protocol
// (proto/sketchkv/v1).
namespace sketchkv {
// Keeps the symbols of these types apart from the service's types of the same words.
inline namespace sdk {

enum class ElementType : uint8_t { kBf16 = 1, kFp16 = 2, kFp32 = 3, kFp8E4M3 = 4, kFp8E5M2 = 5 };

[[nodiscard]] size_t ElementBytes(ElementType type);

// Shape of a model's key/value cache; bounds as in proto/sketchkv/v1/types.proto.
struct CacheLayout {
  uint32_t num_layers = 0;
  uint32_t num_kv_heads = 0;
  uint32_t head_dim = 0;   // of keys and queries
  uint32_t value_dim = 0;  // of values and outputs
  uint32_t block_tokens = 0;
  ElementType key_type = ElementType::kBf16;
  ElementType value_type = ElementType::kBf16;
  float key_scale = 1.0f;              // real key = fp8 key * key_scale
  float value_scale = 1.0f;            // likewise
  bool values_are_key_prefix = false;  // MLA: served with the `raw` profile only
};

// A codec setting for a range of layers: "raw", "qjl", "qjl-paper", "qjl2p", "qjl3p", "qjl4p" or
// "klt" (which needs tables), and knobs. Knobs left out take the profile's defaults.
struct ProfileSpec {
  std::string name = "qjl3p";
  uint32_t layer_begin = 0;
  uint32_t layer_count = 0;  // 0: all from layer_begin on
  std::optional<uint32_t> sign_bits;
  std::optional<uint32_t> num_outliers;
  std::optional<uint32_t> outlier_sign_bits;
  std::optional<uint32_t> value_bits;  // min-max: 2, 4, 8; rotated: 2, 3, 4; 16: raw values
  std::optional<uint32_t> value_group_size;
  std::optional<uint64_t> seed;
  // Rows from the seed alone; dense and orthogonal; dense and independent; the tables' key basis.
  enum class Projection : uint8_t { kHadamard = 1, kOrthogonal = 2, kGaussian = 3, kBasis = 4 };
  std::optional<Projection> projection;
  // Exact along the key and so unbiased; by the key's norm (QJL); least squared error.
  enum class ScaleRule : uint8_t { kExact = 1, kNorm = 2, kLeastSquares = 3 };
  std::optional<ScaleRule> scale_rule;
  // A mean taken out of the keys: none, the tables', each block's own.
  enum class Centering : uint8_t { kNone = 1, kTable = 2, kBlock = 3 };
  std::optional<Centering> centering;
  // Who chooses the outlier channels.
  enum class OutlierSource : uint8_t { kBlock = 1, kTable = 2 };
  std::optional<OutlierSource> outlier_source;
  // As they are; min-max per token and group; rotated, one scale a token; in the tables' value
  // basis.
  enum class ValueCodec : uint8_t { kRaw = 1, kMinMax = 2, kRotated = 3, kBasis = 4 };
  std::optional<ValueCodec> value_codec;
  std::optional<ScaleRule> value_scale_rule;  // kRotated, kBasis: kExact or kLeastSquares
};

// A resolved setting of a range of layers. A number that does not apply is 0, a choice that does
// not apply (or that this client does not know) is none.
struct LayerProfile {
  std::string name;
  uint32_t version = 0;
  uint32_t layer_begin = 0;
  uint32_t layer_count = 0;
  // As they are; sign bits of a projection; scalar codes of projected coordinates.
  enum class KeyCodec : uint8_t { kRaw = 1, kSketch = 2, kCodes = 3 };
  std::optional<KeyCodec> key_codec;
  uint32_t sign_bits = 0;     // kSketch: of a key
  uint32_t code_bits = 0;     // kCodes: of a coordinate; 0: the tables allot them
  uint32_t key_row_bits = 0;  // kCodes: of a key
  std::optional<ProfileSpec::Projection> projection;
  std::optional<ProfileSpec::ScaleRule> scale_rule;
  std::optional<ProfileSpec::Centering> centering;
  uint32_t num_outliers = 0;
  std::optional<ProfileSpec::OutlierSource> outlier_source;
  std::optional<ProfileSpec::ValueCodec> value_codec;
  std::optional<ProfileSpec::ScaleRule> value_scale_rule;
  uint32_t value_bits = 0;      // kMinMax, kRotated: of a number
  uint32_t value_row_bits = 0;  // kBasis: of a value
  uint32_t cell_bytes = 0;      // stored size of one (layer, kv head) of a block
};

// An orthonormal basis of the keys or values of one head, and the bits each part of it gets. Bounds
// as in proto/sketchkv/v1/models.proto.
struct BasisSpec {
  std::vector<float> rows;          // [rows][dim], most important first; empty: no basis
  std::vector<uint8_t> group_bits;  // of each 32 rows: bits a coordinate
  std::vector<float> group_rms;     // of each 32 rows: RMS of the coordinates over the sample
};

// What was learned of one (layer, kv head) before any block was stored. A part that is empty is not
// there.
struct HeadTableSpec {
  uint32_t layer = 0;
  uint32_t head = 0;
  std::vector<float> key_mean;             // [head_dim]
  std::vector<uint32_t> outlier_channels;  // ascending
  BasisSpec key_basis;                     // of keys less key_mean
  std::vector<float> value_mean;           // [value_dim]
  BasisSpec value_basis;                   // of values less value_mean
};

// A registered model, as the server resolved it.
struct ModelInfo {
  std::string name;
  CacheLayout layout;
  std::vector<LayerProfile> profiles;
  std::string fingerprint;    // 16 bytes
  std::string tables_digest;  // 16 bytes; empty when no profile uses tables
  uint64_t slot_bytes = 0;    // stored size of one block
  uint64_t raw_block_bytes = 0;
  double key_bits = 0;  // exact effective bits per number
  double value_bits = 0;
  double bits_per_number = 0;
};

}  // namespace sdk
}  // namespace sketchkv
