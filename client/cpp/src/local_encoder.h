#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/codec.h"
#include "sketchkv/types.h"

namespace sketchkv::client {

// Encodes a raw payload (PutPart::payload) of a resolved range into its cells, [layer][head]: the
// bytes the server makes of it. INVALID_ARGUMENT naming layer, head, token and channel for NaN or
// Inf. The payload's size is checked by the caller.
[[nodiscard]] absl::StatusOr<std::vector<std::byte>> EncodeCells(
    const BlockCodec& codec, const PartRange& range, uint32_t num_tokens, sketchkv::RawOrder order,
    std::span<const std::byte> payload);

}  // namespace sketchkv::client
