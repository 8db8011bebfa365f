#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/layout.h"
#include "kernels/profile.h"

namespace sketchkv {

// Coordinates of a basis that share a number of bits; the last group may be shorter.
constexpr uint32_t kBasisGroupRows = 32;

// A Karhunen-Loeve basis of one kind of rows of one head, and the bits each part of it gets.
struct Basis {
  // [rows][dim], orthonormal rows, most important first. rows <= dim.
  std::vector<float> rows;
  // Of each 32 rows: bits a coordinate, 1-4, not increasing.
  std::vector<uint8_t> group_bits;
  // Of each 32 rows: RMS of the coordinates over the sample the basis was made from; above 0.
  std::vector<float> group_rms;

  [[nodiscard]] bool empty() const { return rows.empty(); }
  bool operator==(const Basis&) const = default;
};

// What was learned of one (layer, kv head) before any block was stored. A part that is empty is
// not there: a profile that needs it is refused.
struct HeadTable {
  std::vector<float> key_mean;             // [head_dim]
  std::vector<uint32_t> outlier_channels;  // ascending, below head_dim, at most 16
  Basis key_basis;                         // of keys less key_mean (or less 0)
  std::vector<float> value_mean;           // [value_dim]
  Basis value_basis;                       // likewise of values

  bool operator==(const HeadTable&) const = default;
};

// The tables registered with a model: one HeadTable a (layer, kv head). Immutable, thread-safe.
class ModelTables {
 public:
  // `heads`: [layers][kv_heads]. INVALID_ARGUMENT names layer, head, field and both numbers: sizes
  // that do not fit the layout, numbers that are not finite, bases that are not orthonormal to
  // 1e-3, channels out of order.
  [[nodiscard]] static absl::StatusOr<ModelTables> Create(const KvLayout& layout,
                                                          std::vector<HeadTable> heads);

  [[nodiscard]] const HeadTable& at(uint32_t layer, uint32_t head) const {
    return heads_[size_t{layer} * num_kv_heads_ + head];
  }
  [[nodiscard]] uint32_t num_layers() const { return num_layers_; }
  [[nodiscard]] uint32_t num_kv_heads() const { return num_kv_heads_; }
  // INVALID_ARGUMENT names the first number in which they are not of `layout`'s shape.
  [[nodiscard]] absl::Status CheckShape(const KvLayout& layout) const;
  // Bytes the tables hold.
  [[nodiscard]] uint64_t size_bytes() const;
  // Every number of the tables in one order, little-endian: what their digest is made of.
  [[nodiscard]] std::vector<uint8_t> Serialize() const;

  // Whether the tables are of `layout`'s shape and have what `profile` wants in `layer`, for every
  // head alike. INVALID_ARGUMENT names what is missing or of another size.
  [[nodiscard]] absl::Status CheckServes(const CodecProfile& profile, const KvLayout& layout,
                                         uint32_t layer) const;

 private:
  ModelTables() = default;

  uint32_t num_layers_ = 0;
  uint32_t num_kv_heads_ = 0;
  uint32_t head_dim_ = 0;
  uint32_t value_dim_ = 0;
  std::vector<HeadTable> heads_;
};

// Stored code bits of a key row in `basis` (words of 32 bits a group), and of a value row (lines of
// 16 or 32 channels).
[[nodiscard]] uint32_t KeyRowBits(const Basis& basis, uint32_t dim);
[[nodiscard]] uint32_t ValueRowBits(const Basis& basis, uint32_t dim);

}  // namespace sketchkv
