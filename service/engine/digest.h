#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

namespace sketchkv {

// The first 16 bytes of a SHA-256.
using Digest128 = std::array<uint8_t, 16>;

[[nodiscard]] Digest128 Sha256Digest128(std::span<const uint8_t> bytes);
[[nodiscard]] std::string ToHex(const Digest128& digest);

}  // namespace sketchkv
