#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/cpu/kernel_table.h"
#include "kernels/layout.h"
#include "kernels/profile.h"
#include "kernels/tables.h"

namespace sketchkv {

// The groups of codes that a profile's keys and values are made of, with their levels: Lloyd-Max
// for N(0,1) (Max, "Quantizing for minimum distortion", 1960, table I), in units of the group's
// RMS; of those of a basis only the ratios matter: all are divided by one power of two. Sign
// sketches are one group of single bits at levels -1 and +1; min-max values one group at levels 0,
// 1, 2, ...
[[nodiscard]] std::vector<CodeGroup> KeyGroups(const CodecProfile& profile, const KvLayout& layout,
                                               const HeadTable* table);
[[nodiscard]] std::vector<CodeGroup> SecondSketchGroups(const CodecProfile& profile);
[[nodiscard]] std::vector<CodeGroup> ValueGroups(const CodecProfile& profile,
                                                 const KvLayout& layout, const HeadTable* table);

// Sum over the coordinates of all groups of their units squared.
[[nodiscard]] float UnitEnergy(std::span<const CodeGroup> groups);

// Codes [rows][16 tokens] of one tile to planes (keys) and lines (values) as kernels/README.md
// draws them. Tokens from num_tokens up leave zeros. The output was zero.
void PackKeys(std::span<const CodeGroup> groups, const uint8_t* codes, uint32_t num_tokens,
              uint8_t* planes);
void PackValues(std::span<const CodeGroup> groups, const uint8_t* codes, uint32_t num_tokens,
                uint8_t* lines);

}  // namespace sketchkv
