#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "sketchkv/types.h"

namespace sketchkv::client {

// What one message may carry: 4 MiB less 64 KiB (proto/sketchkv/v1/codec.proto).
inline constexpr uint64_t kMaxChunkBytes = 4'128'768;
inline constexpr size_t kMaxChain = 65'536;
inline constexpr size_t kMinHashBytes = 16;
inline constexpr size_t kMaxHashBytes = 32;

// `range` within `layout`, its zero counts replaced. INVALID_ARGUMENT naming the field and both
// numbers.
[[nodiscard]] absl::StatusOr<PartRange> ResolveRange(const PartRange& range,
                                                     const CacheLayout& layout);

[[nodiscard]] absl::Status CheckHash(absl::string_view field, const BlockId& hash);
[[nodiscard]] absl::Status CheckChain(absl::string_view field, std::span<const BlockId> hashes);
[[nodiscard]] absl::Status CheckTokens(uint32_t num_tokens, const CacheLayout& layout);
[[nodiscard]] absl::Status CheckPayload(uint64_t have_bytes, uint64_t want_bytes,
                                        absl::string_view what);

// A raw payload: for each layer, key rows of all (head, token), then value rows.
struct RawShape {
  uint64_t layers = 0;
  uint64_t rows = 0;  // heads * tokens
  uint64_t key_row_bytes = 0;
  uint64_t value_row_bytes = 0;  // 0: values are the keys' prefix

  [[nodiscard]] uint64_t layer_bytes() const { return rows * (key_row_bytes + value_row_bytes); }
  [[nodiscard]] uint64_t total_bytes() const { return layers * layer_bytes(); }
};

// Of a resolved range; element types are the layout's, or `type` for keys and values alike.
[[nodiscard]] RawShape RawShapeOf(const CacheLayout& layout, const PartRange& range,
                                  uint32_t num_tokens, std::optional<ElementType> type = {});

// Bytes of the encoded cells of a resolved range.
[[nodiscard]] uint64_t EncodedBytes(const ModelInfo& model, const PartRange& range);

// Where the chunk that begins at `begin` < shape.total_bytes() ends: the last row end that keeps it
// within kMaxChunkBytes.
[[nodiscard]] uint64_t RawChunkEnd(const RawShape& shape, uint64_t begin);

}  // namespace sketchkv::client
