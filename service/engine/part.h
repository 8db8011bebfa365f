#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/codec.h"
#include "service/engine/model_registry.h"
#include "service/engine/payload.h"
#include "service/pool/block.h"

namespace sketchkv {

// Order of a raw payload: [tokens, heads, dim] or [heads, tokens, dim], layer after layer, keys
// before values.
enum class RawOrder : uint8_t { kNhd = 1, kHnd = 2 };

// What a payload on the wire is.
struct PartLayout {
  CellRange range;  // counts resolved, inside the model
  uint32_t num_tokens = 0;
  RawOrder raw_order = RawOrder::kNhd;
  uint64_t checksum = 0;  // of the payload; of parts that came from outside only
  // Encoded payloads only.
  std::string fingerprint;
  uint32_t format_version = 0;
};

// Replaces counts of 0 by "all from the first on" and checks the range against the model.
// INVALID_ARGUMENT names the field and both numbers.
[[nodiscard]] absl::StatusOr<CellRange> ResolveRange(const CellRange& range,
                                                     const KvLayout& layout);
[[nodiscard]] absl::Status ValidateNumTokens(uint32_t num_tokens, const KvLayout& layout);

// Where each head's rows lie in a raw payload of `range`. Element types may differ from the
// layout's, for decoded output.
class RawPartFormat {
 public:
  RawPartFormat(const KvLayout& layout, const CellRange& range, uint32_t num_tokens, RawOrder order,
                DType key_dtype, DType value_dtype);
  // In the layout's own element types.
  RawPartFormat(const KvLayout& layout, const CellRange& range, uint32_t num_tokens,
                RawOrder order);

  [[nodiscard]] uint64_t layer_bytes() const { return layer_bytes_; }
  [[nodiscard]] uint64_t total_bytes() const { return layer_bytes_ * range_.layer_count; }
  [[nodiscard]] uint64_t key_row_bytes() const { return key_row_bytes_; }
  [[nodiscard]] uint64_t value_row_bytes() const { return value_row_bytes_; }
  // Whether `offset` is at the end of a (head, token) row: where a chunk may end.
  [[nodiscard]] bool IsRowBoundary(uint64_t offset) const;
  // The last row boundary at or before `offset`.
  [[nodiscard]] uint64_t FloorToRow(uint64_t offset) const;
  // Where the rows of one head begin and how far they are apart, in bytes of the payload. `layer`
  // and `head` are the model's, inside the range.
  struct RowsAt {
    uint64_t offset = 0;
    uint64_t stride_bytes = 0;
  };
  [[nodiscard]] RowsAt KeysAt(uint32_t layer, uint32_t head) const;
  [[nodiscard]] RowsAt ValuesAt(uint32_t layer, uint32_t head) const;
  // The same in a payload that lies in one piece.
  [[nodiscard]] RowsView Keys(const std::byte* payload, uint32_t layer, uint32_t head) const;
  [[nodiscard]] RowsView Values(const std::byte* payload, uint32_t layer, uint32_t head) const;

 private:
  [[nodiscard]] RowsAt At(uint64_t plane, uint64_t row_bytes, uint32_t head) const;

  CellRange range_;
  uint32_t num_tokens_;
  RawOrder order_;
  uint64_t key_row_bytes_;
  uint64_t value_row_bytes_;
  uint64_t layer_bytes_;
};

// Takes a part while it is being made. What it was given means nothing until the call that makes it
// returns OK with the payload's checksum.
class PartSink {
 public:
  virtual ~PartSink() = default;

  // First, once. `raw`: of raw payloads. `payload_bytes`: how much Append will be given together.
  virtual void Begin(const PartLayout& layout, const std::optional<RawPartFormat>& raw,
                     uint64_t payload_bytes) = 0;
  // The next bytes, of raw payloads whole rows.
  virtual void Append(const Payload& bytes) = 0;
};

// Size of the encoded payload of `range`.
[[nodiscard]] uint64_t EncodedPartBytes(const BlockCodec& codec, const CellRange& range);
// Offset of a cell in it.
[[nodiscard]] uint64_t EncodedCellOffset(const BlockCodec& codec, const CellRange& range,
                                         uint32_t layer, uint32_t head);

// The size a payload with this header must have. INVALID_ARGUMENT for bad ranges, num_tokens,
// order, or an encoded part of another fingerprint or format version.
[[nodiscard]] absl::StatusOr<uint64_t> ExpectedPayloadBytes(const Model& model,
                                                            const PartLayout& part, bool encoded);

}  // namespace sketchkv
