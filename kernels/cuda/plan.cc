#include "kernels/cuda/plan.h"

#include <algorithm>
#include <bit>
#include <limits>

#include "absl/strings/str_format.h"
#include "kernels/base/checked_math.h"
#include "kernels/code_book.h"
#include "kernels/cpu/cpu_codec.h"
#include "kernels/format.h"

namespace sketchkv::cuda {
namespace {

static_assert(kTrials == kUnitTrials);

// Warps take a step each and four of them run side by side, so shares are whole fours.
constexpr uint32_t kSteps = 4;
constexpr uint32_t kStepTokens = kStepTiles * kTileTokens;
// A narrow thread block that goes on to another (sequence, kv head) waits for its queries, slots
// and first cells once more: about as long as for this many steps.
constexpr uint32_t kStepsOfStart = 16;

uint64_t StepsOf(const TokenRange& range) {
  const uint64_t end = RoundUp(range.token_end, kStepTokens) / kStepTokens;
  const uint64_t begin = range.token_begin / kStepTokens;
  return std::max(uint64_t{1}, end - std::min(end, begin));
}

// Steps of each thread block if they are dealt out equally.
uint64_t EqualShare(uint64_t steps, uint32_t most) {
  return RoundUp(std::max<uint64_t>(1, (steps + most - 1) / most), kSteps);
}

// The shortest shares, up to `longest`, of which none is of two (sequence, kv head) pairs and there
// are at most `most`.
std::optional<uint64_t> ShareOfOnePair(std::span<const TokenRange> ranges, uint32_t num_kv_heads,
                                       uint32_t most, uint64_t shortest, uint64_t longest) {
  for (uint64_t share = shortest; share <= longest; share += kSteps) {
    uint64_t shares = 0;
    for (const TokenRange& range : ranges) shares += (StepsOf(range) + share - 1) / share;
    if (shares * num_kv_heads <= most) return share;
  }
  return std::nullopt;
}

std::optional<KeyKind> KindOfKeys(const CodecProfile& profile) {
  if (profile.projection != Projection::kHadamard || profile.centering != Centering::kNone ||
      profile.num_outliers > 0) {
    return std::nullopt;
  }
  if (profile.key_codec == KeyCodec::kSketch) {
    if (profile.sign_bits == 2 * kDim) return KeyKind::kSigns;
    return std::nullopt;
  }
  if (profile.key_codec != KeyCodec::kCodes) return std::nullopt;
  if (profile.code_bits == 2) return KeyKind::kTwoBits;
  if (profile.code_bits == 3) return KeyKind::kThreeBits;
  return std::nullopt;
}

std::optional<ValueKind> KindOfValues(const CodecProfile& profile) {
  if (profile.value_bits != 2) return std::nullopt;
  if (profile.value_codec == ValueCodec::kRotated) return ValueKind::kRotated;
  if (profile.value_codec == ValueCodec::kMinMax && profile.value_group_size == 32) {
    return ValueKind::kRanges;
  }
  return std::nullopt;
}

void CopySigns(const float* signs, uint32_t* words) {
  std::fill_n(words, kDim / 32, 0u);
  for (uint32_t c = 0; c < kDim; ++c) words[c / 32] |= (signs[c] < 0 ? 1u : 0u) << c % 32;
}

CodePlan PlanOf(const CodeGroup& group) {
  CodePlan plan{};
  std::copy_n(group.levels, 8, plan.levels);
  for (uint32_t i = 0; i < 8; ++i) {
    plan.thresholds[i] = std::bit_cast<uint32_t>(group.thresholds[i]) << 1;
  }
  for (uint32_t trial = 0; trial < kTrials; ++trial) {
    const uint8_t* levels = group.search_levels + 64 * trial;
    plan.base[trial] = levels[0];
    uint32_t step = 0;
    for (uint32_t at = 1; at < 64; ++at) {
      if (levels[at] == levels[at - 1]) continue;
      plan.steps[trial][step++] = {
          at, uint32_t{levels[at]} - levels[at - 1],
          uint32_t{levels[at]} * levels[at] - uint32_t{levels[at - 1]} * levels[at - 1]};
    }
  }
  return plan;
}

}  // namespace

std::optional<CellPlan> MakeCellPlan(const KvLayout& layout, const CodecProfile& profile) {
  if (layout.head_dim != kDim || layout.value_dim != kDim ||
      layout.value_source != ValueSource::kSeparate) {
    return std::nullopt;
  }
  const std::optional<KeyKind> keys = KindOfKeys(profile);
  const std::optional<ValueKind> values = KindOfValues(profile);
  const CellFormat format = CellFormat::Make(layout, profile);
  if (!keys || !values || layout.block_tokens % kTileTokens != 0 ||
      !std::has_single_bit(format.num_tiles)) {
    return std::nullopt;
  }
  CellPlan plan{};
  plan.key_kind = *keys;
  plan.value_kind = *values;
  plan.block_tiles_log2 = std::countr_zero(format.num_tiles);
  plan.scales = static_cast<uint32_t>(format.scales);
  plan.planes = static_cast<uint32_t>(format.planes);
  plan.values = static_cast<uint32_t>(format.values);
  plan.ranges = static_cast<uint32_t>(format.ranges);
  const SharedProjections projections = MakeProjections(layout, profile);
  const ProjectionArgs rows = projections.keys->Args();
  for (uint32_t block = 0; block * kDim < rows.rows; ++block) {
    CopySigns(rows.signs + size_t{block} * kDim, plan.key_signs[block]);
  }
  if (projections.values != nullptr) {
    CopySigns(projections.values->Args().signs, plan.value_signs);
  }
  return plan;
}

std::optional<CodecPlan> MakeCodecPlan(const KvLayout& layout, const CodecProfile& profile) {
  const std::optional<CellPlan> cell = MakeCellPlan(layout, profile);
  if (!cell) return std::nullopt;
  CodecPlan plan{};
  plan.cell = *cell;
  plan.exact_key_scale = profile.scale_rule == ScaleRule::kExact;
  plan.exact_value_scale = profile.value_scale_rule == ScaleRule::kExact;
  std::copy_n(kUnitFactors, kTrials, plan.unit_factors);
  if (cell->key_kind != KeyKind::kSigns) {
    const std::vector<CodeGroup> groups = KeyGroups(profile, layout, nullptr);
    plan.keys = PlanOf(groups[0]);
    plan.key_search_dot = groups[0].search_dot;
    plan.key_search_square = groups[0].search_square;
    if (cell->key_kind == KeyKind::kThreeBits) plan.spread = PlanOf(groups[1]);
  }
  if (cell->value_kind == ValueKind::kRotated) {
    const std::vector<CodeGroup> groups = ValueGroups(profile, layout, nullptr);
    plan.values = PlanOf(groups[0]);
    plan.value_search_dot = groups[0].search_dot;
    plan.value_search_square = groups[0].search_square;
  }
  return plan;
}

absl::Status Schedule(std::span<const TokenRange> ranges, uint32_t num_kv_heads,
                      const ThreadBlocks& most, ChainArgs* chain) {
  uint64_t all = 0;
  for (const TokenRange& range : ranges) all += StepsOf(range) * num_kv_heads;
  std::optional<uint64_t> of_one_pair;
  if (most.wide > 0) {
    const uint64_t equal = EqualShare(all, most.wide);
    of_one_pair = ShareOfOnePair(ranges, num_kv_heads, most.wide, equal,
                                 equal + kStepsOfStart * most.narrow / most.wide);
  }
  chain->wide = of_one_pair.has_value();
  const uint64_t equal = EqualShare(all, most.narrow);
  if (!chain->wide) {
    of_one_pair = ShareOfOnePair(ranges, num_kv_heads, most.narrow, equal, equal + kStepsOfStart);
  }
  const uint64_t share = of_one_pair.value_or(equal);
  // Pairs have whole shares then, the last one partly of no tokens.
  const uint64_t unit = of_one_pair.value_or(1);
  uint64_t steps = 0;
  for (size_t i = 0; i < ranges.size(); ++i) {
    const TokenRange& range = ranges[i];
    chain->sequences[i] = {range.first_block, range.token_begin, range.token_end,
                           static_cast<uint32_t>(steps)};
    steps += RoundUp(StepsOf(range), unit);
  }
  // Places among all steps, and the end of the last share, have 32 bits.
  constexpr uint64_t kMost = std::numeric_limits<uint32_t>::max();
  const uint64_t places = RoundUp(steps * num_kv_heads, share);
  if (places > kMost) {
    return absl::InvalidArgumentError(
        absl::StrFormat("%d steps of %d tokens over all kv heads of a launch: at most %d", places,
                        kStepTokens, kMost));
  }
  chain->num_sequences = static_cast<uint32_t>(ranges.size());
  chain->sequences[chain->num_sequences] = {0, 0, 0, static_cast<uint32_t>(steps)};
  chain->num_kv_heads = num_kv_heads;
  chain->share = static_cast<uint32_t>(share);
  chain->num_thread_blocks = static_cast<uint32_t>(places / share);
  return absl::OkStatus();
}

}  // namespace sketchkv::cuda
