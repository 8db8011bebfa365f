#include "kernels/code_book.h"

#include <algorithm>
#include <cstring>

#include "kernels/exact_math.h"
#include "kernels/format.h"

namespace sketchkv {
namespace {

// Magnitudes of N(0,1) in units of kLevelUnits, in integers, so that attention can add them up
// exactly; the mean squared errors are within 0.06 % of Lloyd-Max levels' (0.11748 against 0.11748,
// 0.034549 against 0.034548, 0.0095062 against 0.0095010).
constexpr int8_t kMagnitudes[4][8] = {
    {1},
    {27, 90},
    {13, 40, 71, 114},
    {5, 15, 25, 36, 48, 62, 79, 104},
};
constexpr float kLevelUnits[4] = {0.79788456f, 0.0167820f, 0.0188866f, 0.0262197f};

// Of three bits that add up: +-w0 +- w1 +- w2, fitted to N(0,1) as the levels above are.
constexpr int8_t kSpreadMagnitudes[4] = {65 - 34 - 17, 65 - 34 + 17, 65 + 34 - 17, 65 + 34 + 17};
constexpr float kSpreadUnit = 0.0179529f;

// Of the search for a unit, one step of a level in units of N(0,1): 3-bit codes of both kinds add
// up.
constexpr float SearchStep(uint32_t bits) {
  const uint32_t highest = (1u << (bits - 1)) - 1;
  return static_cast<float>(kMagnitudes[bits - 1][highest]) * kLevelUnits[bits - 1] /
         float{kLargestSearchLevel};
}

struct SearchLevels {
  uint8_t levels[kUnitTrials][64];
};

// What a magnitude of `index` steps becomes at each of the units tried.
constexpr SearchLevels MakeSearchLevels(uint32_t bits, const int8_t* magnitudes, float level_unit) {
  SearchLevels table{};
  for (uint32_t trial = 0; trial < kUnitTrials; ++trial) {
    for (uint32_t index = 0; index < 64; ++index) {
      const float magnitude = static_cast<float>(index) / (kUnitSteps * kUnitFactors[trial]);
      uint32_t i = 0;
      while (i + 1 < 1u << (bits - 1) &&
             magnitude > static_cast<float>(magnitudes[i] + magnitudes[i + 1]) / 2 * level_unit) {
        ++i;
      }
      const float level = static_cast<float>(magnitudes[i]) * level_unit;
      table.levels[trial][index] = static_cast<uint8_t>(level / SearchStep(bits) + 0.5f);
    }
  }
  return table;
}

constexpr SearchLevels kSearchLevels[4] = {MakeSearchLevels(1, kMagnitudes[0], kLevelUnits[0]),
                                           MakeSearchLevels(2, kMagnitudes[1], kLevelUnits[1]),
                                           MakeSearchLevels(3, kMagnitudes[2], kLevelUnits[2]),
                                           MakeSearchLevels(4, kMagnitudes[3], kLevelUnits[3])};
constexpr SearchLevels kSpreadSearchLevels = MakeSearchLevels(3, kSpreadMagnitudes, kSpreadUnit);

// Levels of 2^bits codes from the magnitudes of the upper half: code half + i is magnitude i, code
// half - 1 - i its negative. level_unit: in units of N(0,1), unit: what those are worth.
void SetLevels(const int8_t* magnitudes, float level_unit, float unit, CodeGroup* group) {
  const uint32_t half = 1u << (group->bits - 1);
  group->inverse_unit = 1.0f / unit;
  group->level_unit = level_unit * unit;
  for (uint32_t i = 1; i < half; ++i) {
    const float bound = static_cast<float>(magnitudes[i - 1] + magnitudes[i]) / 2 * level_unit;
    group->thresholds[half + i] = bound;
    group->thresholds[half - i] = -bound;
  }
  for (uint32_t code = 0; code < 16; ++code) {
    const uint32_t c = code % (2 * half);
    const int magnitude = c >= half ? magnitudes[c - half] : -magnitudes[half - 1 - c];
    group->level_codes[code] = static_cast<int8_t>(magnitude);
    group->levels[code] = static_cast<float>(magnitude) * group->level_unit;
  }
}

CodeGroup MakeGroup(uint32_t row, uint32_t rows, uint32_t bits, float unit,
                    const SearchLevels& search) {
  CodeGroup group{};
  group.row = row;
  group.rows = rows;
  group.bits = bits;
  group.search_levels = search.levels[0];
  group.search_dot = SearchStep(bits) * unit * unit;
  group.search_square = SearchStep(bits) * SearchStep(bits) * unit * unit;
  return group;
}

CodeGroup LloydMaxGroup(uint32_t row, uint32_t rows, uint32_t bits, float unit) {
  CodeGroup group = MakeGroup(row, rows, bits, unit, kSearchLevels[bits - 1]);
  SetLevels(kMagnitudes[bits - 1], kLevelUnits[bits - 1], unit, &group);
  return group;
}

CodeGroup SpreadGroup(uint32_t row, uint32_t rows, float unit) {
  CodeGroup group = MakeGroup(row, rows, 3, unit, kSpreadSearchLevels);
  group.placement = CodePlacement::kSpread;
  SetLevels(kSpreadMagnitudes, kSpreadUnit, unit, &group);
  return group;
}

// Runs of codes of a key. Of 3-bit codes, three in four have a nibble each, with Lloyd-Max levels,
// and the highest bits of three nibbles hold a fourth: no lookup more than bits / 4.
void AppendKeyGroups(uint32_t row, uint32_t rows, uint32_t bits, float unit, uint32_t* word,
                     std::vector<CodeGroup>* groups) {
  // In pieces of 32 rows, which are whole words.
  const uint32_t piece = bits == 3 ? kGroupRows : rows;
  for (uint32_t end = row + rows; row < end; row += piece) {
    const uint32_t count = std::min(piece, end - row);
    const uint32_t spread = bits == 3 ? count / 4 : 0;
    groups->push_back(LloydMaxGroup(row, count - spread, bits, unit));
    groups->back().place = *word;
    if (bits == 3) {
      groups->back().placement = CodePlacement::kNibble;
      groups->push_back(SpreadGroup(row + count - spread, spread, unit));
      groups->back().place = *word;
    }
    *word += KeyWords(count, bits);
  }
}

// Brings the largest RMS of a basis into [1, 2), so that squares of units stay within float.
float UnitScale(const Basis& basis) {
  return PowerOfTwo(-FloorLog2(*std::max_element(basis.group_rms.begin(), basis.group_rms.end())));
}

CodeGroup SignGroup(uint32_t rows) {
  CodeGroup group{};
  group.rows = rows;
  group.bits = 1;
  SetLevels(kMagnitudes[0], 1.0f, 1.0f, &group);
  return group;
}

void PutWord(uint8_t* line, uint32_t lane, uint32_t bits) {
  uint32_t word = 0;
  std::memcpy(&word, line + 4 * lane, sizeof(word));
  word |= bits;
  std::memcpy(line + 4 * lane, &word, sizeof(word));
}

// Codes of tokens 4p..4p+3 in the bytes of a word.
uint32_t FourTokens(const uint8_t* codes, uint32_t p) {
  uint32_t word = 0;
  std::memcpy(&word, codes + 4 * p, sizeof(word));
  return word;
}

uint32_t TwoBitWord(const uint8_t* codes) {
  const auto low = [&](uint32_t p) { return FourTokens(codes, p) & 0x03030303u; };
  return low(0) | low(1) << 2 | low(2) << 4 | low(3) << 6;
}

uint32_t OneBitWord(const uint8_t* codes, uint32_t bit) {
  const auto at = [&](uint32_t p) { return FourTokens(codes, p) >> bit & 0x01010101u; };
  return at(0) | at(1) << 1 | at(2) << 2 | at(3) << 3;
}

// One channel of a group: codes of its sixteen tokens.
void PackChannel(const CodeGroup& group, uint32_t channel, const uint8_t* codes, uint8_t* lines) {
  uint8_t* line = lines + size_t{group.place} * kLineBytes;
  const uint32_t sixteen = channel / 16;
  const uint32_t lane = channel % 16;
  const uint32_t whole = (group.rows + 15) / 16 * (group.bits / 2);
  if (group.bits % 2 == 1) {
    PutWord(line + kLineBytes * (whole + channel / 32), lane,
            OneBitWord(codes, group.bits - 1) << (4 * (sixteen % 2)));
  }
  if (group.bits == 2 || group.bits == 3) {
    PutWord(line + kLineBytes * sixteen, lane, TwoBitWord(codes));
  } else if (group.bits == 4) {
    for (uint32_t r = 0; r < 2; ++r) {
      PutWord(line + kLineBytes * (2 * sixteen + r), lane,
              FourTokens(codes, 2 * r) | FourTokens(codes, 2 * r + 1) << 4);
    }
  } else if (group.bits == 8) {
    for (uint32_t r = 0; r < 4; ++r) {
      PutWord(line + kLineBytes * (4 * sixteen + r), lane, FourTokens(codes, r));
    }
  }
}

}  // namespace

std::vector<CodeGroup> KeyGroups(const CodecProfile& profile, const KvLayout& layout,
                                 const HeadTable* table) {
  if (profile.key_codec == KeyCodec::kRaw) return {};
  if (profile.key_codec == KeyCodec::kSketch) return {SignGroup(profile.sign_bits)};
  std::vector<CodeGroup> groups;
  uint32_t word = 0;
  if (profile.projection != Projection::kBasis) {
    AppendKeyGroups(0, layout.head_dim, profile.code_bits, 1.0f, &word, &groups);
    return groups;
  }
  const Basis& basis = table->key_basis;
  const float scale = UnitScale(basis);
  const auto rows = static_cast<uint32_t>(basis.rows.size() / layout.head_dim);
  for (uint32_t g = 0; g < basis.group_bits.size(); ++g) {
    const uint32_t row = g * kGroupRows;
    AppendKeyGroups(row, std::min(kGroupRows, rows - row), basis.group_bits[g],
                    basis.group_rms[g] * scale, &word, &groups);
  }
  return groups;
}

std::vector<CodeGroup> SecondSketchGroups(const CodecProfile& profile) {
  if (profile.outlier_method != OutlierMethod::kSketch) return {};
  return {SignGroup(profile.outlier_sign_bits)};
}

std::vector<CodeGroup> ValueGroups(const CodecProfile& profile, const KvLayout& layout,
                                   const HeadTable* table) {
  if (profile.value_codec == ValueCodec::kRaw) return {};
  if (profile.value_codec == ValueCodec::kRotated) {
    return {LloydMaxGroup(0, layout.value_dim, profile.value_bits, 1.0f)};
  }
  if (profile.value_codec == ValueCodec::kMinMax) {
    CodeGroup group{};
    group.rows = layout.value_dim;
    group.bits = profile.value_bits;
    group.level_unit = 1.0f;
    for (uint32_t code = 0; code < 16; ++code) {
      group.level_codes[code] = static_cast<int8_t>(code);
      group.levels[code] = static_cast<float>(code);
    }
    return {group};
  }
  const Basis& basis = table->value_basis;
  const float scale = UnitScale(basis);
  const auto rows = static_cast<uint32_t>(basis.rows.size() / layout.value_dim);
  std::vector<CodeGroup> groups;
  uint32_t line = 0;
  for (uint32_t g = 0; g < basis.group_bits.size(); ++g) {
    const uint32_t row = g * kGroupRows;
    groups.push_back(LloydMaxGroup(row, std::min(kGroupRows, rows - row), basis.group_bits[g],
                                   basis.group_rms[g] * scale));
    groups.back().place = line;
    line += ValueLines(groups.back().rows, groups.back().bits);
  }
  return groups;
}

float UnitEnergy(std::span<const CodeGroup> groups) {
  double sum = 0.0;
  for (const CodeGroup& group : groups) {
    const double unit = 1.0 / double{group.inverse_unit};
    sum += group.rows * unit * unit;
  }
  return static_cast<float>(sum);
}

void PackKeys(std::span<const CodeGroup> groups, const uint8_t* codes, uint32_t num_tokens,
              uint8_t* planes) {
  for (const CodeGroup& group : groups) {
    uint8_t* words = planes + size_t{group.place} * kLineBytes;
    for (uint32_t i = 0; i < group.rows; ++i) {
      const uint8_t* code = codes + size_t{group.row + i} * kLanes;
      if (group.placement == CodePlacement::kSpread) {
        for (uint32_t b = 0; b < 3; ++b) {
          const uint32_t bit = 12 * i + 4 * b + 3;
          for (uint32_t lane = 0; lane < num_tokens; ++lane) {
            PutWord(words + kLineBytes * (bit / 32), lane,
                    (uint32_t{code[lane]} >> (2 - b) & 1) << (bit % 32));
          }
        }
        continue;
      }
      const uint32_t bit = group.placement == CodePlacement::kNibble ? 4 * i : i * group.bits;
      for (uint32_t lane = 0; lane < num_tokens; ++lane) {
        PutWord(words + kLineBytes * (bit / 32), lane, uint32_t{code[lane]} << (bit % 32));
      }
    }
  }
}

void PackValues(std::span<const CodeGroup> groups, const uint8_t* codes, uint32_t num_tokens,
                uint8_t* lines) {
  for (const CodeGroup& group : groups) {
    for (uint32_t channel = 0; channel < group.rows; ++channel) {
      uint8_t present[kLanes] = {};
      std::copy_n(codes + size_t{group.row + channel} * kLanes, num_tokens, present);
      PackChannel(group, channel, present, lines);
    }
  }
}

}  // namespace sketchkv
