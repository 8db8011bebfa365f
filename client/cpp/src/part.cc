#include "client/cpp/src/part.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"

namespace sketchkv::client {
namespace {

absl::Status CheckSpan(absl::string_view what, uint32_t begin, uint32_t count, uint32_t limit,
                       uint32_t* resolved) {
  if (begin >= limit) {
    return absl::InvalidArgumentError(
        absl::StrCat(what, "_begin ", begin, " is not below the model's ", limit, " ", what, "s"));
  }
  if (count > limit - begin) {
    return absl::InvalidArgumentError(absl::StrCat(what, "_begin ", begin, " plus ", what,
                                                   "_count ", count, " is over the model's ", limit,
                                                   " ", what, "s"));
  }
  *resolved = count == 0 ? limit - begin : count;
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<PartRange> ResolveRange(const PartRange& range, const CacheLayout& layout) {
  PartRange resolved = range;
  SKETCHKV_RETURN_IF_ERROR(CheckSpan("layer", range.layer_begin, range.layer_count,
                                     layout.num_layers, &resolved.layer_count));
  SKETCHKV_RETURN_IF_ERROR(CheckSpan("head", range.head_begin, range.head_count,
                                     layout.num_kv_heads, &resolved.head_count));
  return resolved;
}

absl::Status CheckHash(absl::string_view field, const BlockId& hash) {
  if (hash.size() >= kMinHashBytes && hash.size() <= kMaxHashBytes) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(field, " has ", hash.size(), " bytes, want ",
                                                 kMinHashBytes, " to ", kMaxHashBytes));
}

absl::Status CheckChain(absl::string_view field, std::span<const BlockId> hashes) {
  if (hashes.empty() || hashes.size() > kMaxChain) {
    return absl::InvalidArgumentError(
        absl::StrCat(field, " has ", hashes.size(), " hashes, want 1 to ", kMaxChain));
  }
  for (size_t i = 0; i < hashes.size(); ++i) {
    SKETCHKV_RETURN_IF_ERROR(CheckHash(absl::StrCat(field, "[", i, "]"), hashes[i]));
  }
  return absl::OkStatus();
}

absl::Status CheckTokens(uint32_t num_tokens, const CacheLayout& layout) {
  if (num_tokens >= 1 && num_tokens <= layout.block_tokens) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      "num_tokens is ", num_tokens, ", want 1 to the model's block_tokens ", layout.block_tokens));
}

absl::Status CheckPayload(uint64_t have_bytes, uint64_t want_bytes, absl::string_view what) {
  if (have_bytes == want_bytes) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("payload has ", have_bytes, " bytes, ", what, " takes ", want_bytes));
}

RawShape RawShapeOf(const CacheLayout& layout, const PartRange& range, uint32_t num_tokens,
                    std::optional<ElementType> type) {
  RawShape shape;
  shape.layers = range.layer_count;
  shape.rows = uint64_t{range.head_count} * num_tokens;
  shape.key_row_bytes = layout.head_dim * ElementBytes(type.value_or(layout.key_type));
  if (!layout.values_are_key_prefix) {
    shape.value_row_bytes = layout.value_dim * ElementBytes(type.value_or(layout.value_type));
  }
  return shape;
}

uint64_t EncodedBytes(const ModelInfo& model, const PartRange& range) {
  uint64_t bytes = 0;
  for (const LayerProfile& profile : model.profiles) {
    const uint64_t begin = std::max(range.layer_begin, profile.layer_begin);
    const uint64_t end = std::min<uint64_t>(uint64_t{range.layer_begin} + range.layer_count,
                                            uint64_t{profile.layer_begin} + profile.layer_count);
    if (begin < end) bytes += (end - begin) * range.head_count * profile.cell_bytes;
  }
  return bytes;
}

uint64_t RawChunkEnd(const RawShape& shape, uint64_t begin) {
  const uint64_t limit = begin + kMaxChunkBytes;
  if (limit >= shape.total_bytes()) return shape.total_bytes();
  const uint64_t layer_begin = limit / shape.layer_bytes() * shape.layer_bytes();
  const uint64_t within = limit - layer_begin;
  const uint64_t key_bytes = shape.rows * shape.key_row_bytes;
  if (within < key_bytes) return layer_begin + within / shape.key_row_bytes * shape.key_row_bytes;
  if (shape.value_row_bytes == 0) return layer_begin + key_bytes;
  return layer_begin + key_bytes +
         (within - key_bytes) / shape.value_row_bytes * shape.value_row_bytes;
}

}  // namespace sketchkv::client
