#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

namespace sketchkv::tune {

// Keys and values lie differently: a last group of fewer than 32 coordinates takes other sizes.
enum class RowKind { kKeys, kValues };

// Mean squared error of a Gaussian coordinate of variance 1 at 0 to 4 bits, quantised by Lloyd-Max.
inline constexpr double kDistortion[] = {1.0, 0.3634, 0.1175, 0.03455, 0.0095};
inline constexpr uint32_t kMaxGroupBits = 4;

// Stored bits of one row's group of `rows` coordinates of `bits` each.
[[nodiscard]] uint32_t GroupRowBits(RowKind kind, uint32_t rows, uint32_t bits);

// Bits a coordinate for each group of 32 coordinates, 1-4 and not increasing, coordinates behind
// the last group none: of all that store exactly `row_bits` a row, those with the least sum of
// importance * distortion. `importance`: of each coordinate, not increasing. nullopt when no
// allotment takes just `row_bits`.
[[nodiscard]] std::optional<std::vector<uint8_t>> AllotBits(std::span<const double> importance,
                                                            RowKind kind, uint32_t row_bits);

// All row bits that some allotment of `dim` coordinates takes, ascending.
[[nodiscard]] std::vector<uint32_t> PossibleRowBits(RowKind kind, uint32_t dim);

}  // namespace sketchkv::tune
