#include "service/engine/part.h"

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "kernels/base/checked_math.h"
#include "kernels/base/status_macros.h"

namespace sketchkv {
namespace {

absl::Status ResolveAxis(const char* axis, uint32_t begin, uint32_t* count, uint32_t limit) {
  if (begin >= limit) {
    return absl::InvalidArgumentError(
        absl::StrCat(axis, "_begin is ", begin, "; the model has ", limit));
  }
  if (*count == 0) *count = limit - begin;
  if (*count > limit - begin) {
    return absl::InvalidArgumentError(absl::StrCat(axis, "_begin + ", axis, "_count is ",
                                                   uint64_t{begin} + *count, "; the model has ",
                                                   limit));
  }
  return absl::OkStatus();
}

std::string Hex(const std::string& bytes) { return absl::BytesToHexString(bytes); }

}  // namespace

absl::StatusOr<CellRange> ResolveRange(const CellRange& range, const KvLayout& layout) {
  CellRange resolved = range;
  SKETCHKV_RETURN_IF_ERROR(
      ResolveAxis("layer", range.layer_begin, &resolved.layer_count, layout.num_layers));
  SKETCHKV_RETURN_IF_ERROR(
      ResolveAxis("head", range.head_begin, &resolved.head_count, layout.num_kv_heads));
  return resolved;
}

absl::Status ValidateNumTokens(uint32_t num_tokens, const KvLayout& layout) {
  if (num_tokens >= 1 && num_tokens <= layout.block_tokens) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      "num_tokens is ", num_tokens, "; it needs 1 to block_tokens = ", layout.block_tokens));
}

RawPartFormat::RawPartFormat(const KvLayout& layout, const CellRange& range, uint32_t num_tokens,
                             RawOrder order, DType key_dtype, DType value_dtype)
    : range_(range),
      num_tokens_(num_tokens),
      order_(order),
      key_row_bytes_(layout.head_dim * DTypeBytes(key_dtype)),
      value_row_bytes_(layout.value_source == ValueSource::kKeyPrefix
                           ? 0
                           : layout.value_dim * DTypeBytes(value_dtype)),
      // At most 256 heads * 1024 tokens * 2 * 576 channels * 4 bytes: fits without a check.
      layer_bytes_(uint64_t{range.head_count} * num_tokens * (key_row_bytes_ + value_row_bytes_)) {}

RawPartFormat::RawPartFormat(const KvLayout& layout, const CellRange& range, uint32_t num_tokens,
                             RawOrder order)
    : RawPartFormat(layout, range, num_tokens, order, layout.key_dtype, layout.value_dtype) {}

uint64_t RawPartFormat::FloorToRow(uint64_t offset) const {
  const uint64_t key_plane = uint64_t{range_.head_count} * num_tokens_ * key_row_bytes_;
  const uint64_t in_layer = offset % layer_bytes_;
  if (in_layer <= key_plane) return offset - in_layer % key_row_bytes_;
  return offset - (in_layer - key_plane) % value_row_bytes_;
}

bool RawPartFormat::IsRowBoundary(uint64_t offset) const { return FloorToRow(offset) == offset; }

RawPartFormat::RowsAt RawPartFormat::At(uint64_t plane, uint64_t row_bytes, uint32_t head) const {
  const uint64_t index = head - range_.head_begin;
  if (order_ == RawOrder::kNhd) {
    return {.offset = plane + index * row_bytes, .stride_bytes = range_.head_count * row_bytes};
  }
  return {.offset = plane + index * num_tokens_ * row_bytes, .stride_bytes = row_bytes};
}

RawPartFormat::RowsAt RawPartFormat::KeysAt(uint32_t layer, uint32_t head) const {
  return At((layer - range_.layer_begin) * layer_bytes_, key_row_bytes_, head);
}

RawPartFormat::RowsAt RawPartFormat::ValuesAt(uint32_t layer, uint32_t head) const {
  const uint64_t key_plane = uint64_t{range_.head_count} * num_tokens_ * key_row_bytes_;
  return At((layer - range_.layer_begin) * layer_bytes_ + key_plane, value_row_bytes_, head);
}

RowsView RawPartFormat::Keys(const std::byte* payload, uint32_t layer, uint32_t head) const {
  const RowsAt at = KeysAt(layer, head);
  return {.data = payload + at.offset, .stride_bytes = at.stride_bytes};
}

RowsView RawPartFormat::Values(const std::byte* payload, uint32_t layer, uint32_t head) const {
  const RowsAt at = ValuesAt(layer, head);
  return {.data = payload + at.offset, .stride_bytes = at.stride_bytes};
}

uint64_t EncodedPartBytes(const BlockCodec& codec, const CellRange& range) {
  uint64_t bytes = 0;
  for (uint32_t i = 0; i < range.layer_count; ++i) {
    bytes += codec.cell_bytes(range.layer_begin + i) * range.head_count;
  }
  return bytes;
}

uint64_t EncodedCellOffset(const BlockCodec& codec, const CellRange& range, uint32_t layer,
                           uint32_t head) {
  uint64_t offset = 0;
  for (uint32_t l = range.layer_begin; l < layer; ++l) {
    offset += codec.cell_bytes(l) * range.head_count;
  }
  return offset + codec.cell_bytes(layer) * (head - range.head_begin);
}

absl::StatusOr<uint64_t> ExpectedPayloadBytes(const Model& model, const PartLayout& part,
                                              bool encoded) {
  SKETCHKV_ASSIGN_OR_RETURN(const CellRange range, ResolveRange(part.range, model.layout()));
  SKETCHKV_RETURN_IF_ERROR(ValidateNumTokens(part.num_tokens, model.layout()));
  if (!encoded) {
    if (part.raw_order != RawOrder::kNhd && part.raw_order != RawOrder::kHnd) {
      return absl::InvalidArgumentError(
          absl::StrCat("raw_order is ", static_cast<int>(part.raw_order), "; it needs 1 or 2"));
    }
    return RawPartFormat(model.layout(), range, part.num_tokens, part.raw_order).total_bytes();
  }
  const std::string fingerprint(model.fingerprint.begin(), model.fingerprint.end());
  if (part.fingerprint != fingerprint) {
    return absl::InvalidArgumentError(absl::StrCat("fingerprint is ", Hex(part.fingerprint),
                                                   "; model ", model.name, " has ",
                                                   Hex(fingerprint)));
  }
  if (part.format_version != kFormatVersion) {
    return absl::InvalidArgumentError(absl::StrCat("format_version is ", part.format_version,
                                                   "; this server reads ", kFormatVersion));
  }
  return EncodedPartBytes(*model.codec, range);
}

}  // namespace sketchkv
