#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <vector>

#include "kernels/base/checked_math.h"
#include "kernels/cpu/cpu_codec.h"
#include "kernels/exact_math.h"

namespace sketchkv {
namespace {

constexpr float kNegligibleResidual = 0x1p-90f;
constexpr float kSqrtHalfPi = 1.25331413731550025f;

// The `count` channels of most energy, ascending; of equal ones the lower comes first.
std::vector<uint32_t> LargestChannels(const std::vector<float>& energy, uint32_t count) {
  std::vector<uint32_t> channels(energy.size());
  std::iota(channels.begin(), channels.end(), 0u);
  std::stable_sort(channels.begin(), channels.end(),
                   [&](uint32_t a, uint32_t b) { return energy[a] > energy[b]; });
  channels.resize(count);
  std::sort(channels.begin(), channels.end());
  return channels;
}

// Of a sign sketch.
float SketchScale(ScaleRule rule, uint32_t sign_bits, float energy, float dot) {
  if (energy == 0.0f || dot == 0.0f) return 0.0f;
  if (rule == ScaleRule::kExact) return energy / dot;
  return kSqrtHalfPi / static_cast<float>(sign_bits) * std::sqrt(energy);
}

// Tokens of tile `tile`.
uint32_t TokensIn(uint32_t tile, uint32_t num_tokens) {
  return std::min(kLanes, num_tokens - tile * kLanes);
}

}  // namespace

// Of one cell's keys while they are encoded. Tiles are divided by 2^exponent.
struct CpuCellCodec::SketchState {
  float* tiles = nullptr;  // [num_tiles][head_dim][16]; outlier rows become 0
  uint32_t num_tokens = 0;
  uint32_t num_tiles = 0;
  int exponent = 0;
  const uint8_t* channels = nullptr;  // u16, of the group of the tile at hand
  std::vector<float> outliers;        // [num_outliers][16]: what was in those rows of the tile
  std::vector<float> projected;       // codes: [rows][16]
  float scales[kLanes] = {};          // of the tile, as a reader will see them / 2^exponent
};

void CpuCellCodec::EncodeKeys(float* tiles, uint32_t num_tokens, int exponent,
                              const RowsArgs& values, uint8_t* cell) const {
  SketchState state;
  state.tiles = tiles;
  state.num_tokens = num_tokens;
  state.num_tiles = static_cast<uint32_t>(RoundUp(num_tokens, kLanes) / kLanes);
  state.exponent = exponent;
  state.outliers.resize(size_t{profile_.num_outliers} * kLanes);
  if (profile_.key_codec == KeyCodec::kCodes) {
    state.projected.resize(RoundUp(key_projection_->rows(), layout_.head_dim) * kLanes);
  }
  if (profile_.centering == Centering::kBlock) TakeBlockMean(&state, cell);
  const uint32_t group_tiles =
      std::max(1u, static_cast<uint32_t>(RoundUp(profile_.outlier_group_tokens, kLanes)) / kLanes);
  for (uint32_t tile = 0; tile < state.num_tiles; ++tile) {
    PrefetchTile(values, layout_.value_dim, tile * kLanes, num_tokens);
    if (profile_.num_outliers > 0) {
      if (format_.outlier_groups > 0 && tile % group_tiles == 0) {
        ChooseChannels(&state, tile / group_tiles, cell);
      }
      state.channels = OutlierChannels(cell, tile / group_tiles);
      TakeOutliers(&state, tile);
    }
    if (profile_.key_codec == KeyCodec::kCodes) {
      EncodeKeyCodes(&state, tile, cell);
    } else {
      SketchKeys(&state, tile, cell);
    }
    if (profile_.outlier_method == OutlierMethod::kSketch) SketchOutliers(&state, tile, cell);
    if (profile_.outlier_method == OutlierMethod::kResidual) StoreResiduals(&state, tile, cell);
  }
}

// The mean is stored as bf16, and what was stored is subtracted.
void CpuCellCodec::TakeBlockMean(SketchState* state, uint8_t* cell) const {
  const uint32_t dim = layout_.head_dim;
  const Pow2Factors up = MakePow2(state->exponent);
  const Pow2Factors down = MakePow2(-state->exponent);
  for (uint32_t c = 0; c < dim; ++c) {
    float sum = 0.0f;
    for (uint32_t t = 0; t < state->num_tokens; ++t) {
      sum += state->tiles[(size_t{t / kLanes} * dim + c) * kLanes + t % kLanes];
    }
    const uint16_t mean = FloatToBf16(ApplyPow2(sum / static_cast<float>(state->num_tokens), up));
    WriteU16(cell + format_.mean + size_t{2} * c, mean);
    const float taken = ApplyPow2(Bf16ToFloat(mean), down);
    for (uint32_t t = 0; t < state->num_tokens; ++t) {
      state->tiles[(size_t{t / kLanes} * dim + c) * kLanes + t % kLanes] -= taken;
    }
  }
}

void CpuCellCodec::ChooseChannels(SketchState* state, uint32_t group, uint8_t* cell) const {
  const uint32_t dim = layout_.head_dim;
  const uint32_t group_tiles =
      static_cast<uint32_t>(RoundUp(profile_.outlier_group_tokens, kLanes)) / kLanes;
  const uint32_t first = group * group_tiles;
  const uint32_t count = std::min(group_tiles, state->num_tiles - first);
  std::vector<float> energy(dim);
  kernels_.channel_energy(state->tiles + size_t{first} * dim * kLanes, count, dim, energy.data());
  uint8_t* out = cell + format_.outlier_channels + size_t{2} * group * profile_.num_outliers;
  for (const uint32_t channel : LargestChannels(energy, profile_.num_outliers)) {
    WriteU16(out, static_cast<uint16_t>(channel));
    out += 2;
  }
}

void CpuCellCodec::TakeOutliers(SketchState* state, uint32_t tile) const {
  for (uint32_t o = 0; o < profile_.num_outliers; ++o) {
    const size_t channel = ReadU16(state->channels + 2 * o);
    float* row = state->tiles + (size_t{tile} * layout_.head_dim + channel) * kLanes;
    std::copy_n(row, kLanes, state->outliers.data() + size_t{o} * kLanes);
    std::fill_n(row, kLanes, 0.0f);
  }
}

void CpuCellCodec::SketchKeys(SketchState* state, uint32_t tile, uint8_t* cell) const {
  const ProjectionArgs projection = key_projection_->Args();
  float energy[kLanes], dot[kLanes];
  kernels_.sketch_tile({&projection, state->tiles + size_t{tile} * layout_.head_dim * kLanes,
                        cell + format_.plane_offset(tile), energy, dot});
  for (uint32_t i = 0; i < kLanes; ++i) {
    state->scales[i] = SketchScale(profile_.scale_rule, profile_.sign_bits, energy[i], dot[i]);
  }
  StoreScales(state->scales, state->exponent,
              cell + format_.scale_offset(tile, format_.key_scale_row));
}

void CpuCellCodec::EncodeKeyCodes(SketchState* state, uint32_t tile, uint8_t* cell) const {
  const ProjectionArgs projection = key_projection_->Args();
  const float* keys = state->tiles + size_t{tile} * layout_.head_dim * kLanes;
  const CodesTile codes{key_groups_, key_unit_energy_,
                        &projection, profile_.projection == Projection::kBasis,
                        keys,        state->projected.data()};
  EncodeCodes(kernels_.encode_keys, codes, profile_.scale_rule, TokensIn(tile, state->num_tokens),
              cell + format_.plane_offset(tile), state->scales);
  StoreScales(state->scales, state->exponent,
              cell + format_.scale_offset(tile, format_.key_scale_row));
}

// The second sketch: of the outlier channels alone.
void CpuCellCodec::SketchOutliers(SketchState* state, uint32_t tile, uint8_t* cell) const {
  const uint32_t dim = layout_.head_dim;
  float* keys = state->tiles + size_t{tile} * dim * kLanes;  // no longer needed
  std::fill_n(keys, size_t{dim} * kLanes, 0.0f);
  for (uint32_t o = 0; o < profile_.num_outliers; ++o) {
    std::copy_n(state->outliers.data() + size_t{o} * kLanes, kLanes,
                keys + size_t{ReadU16(state->channels + 2 * o)} * kLanes);
  }
  const ProjectionArgs projection = key_projection_->Args(profile_.outlier_sign_bits);
  float energy[kLanes], dot[kLanes], scales[kLanes];
  kernels_.sketch_tile({&projection, keys, cell + format_.outlier_plane_offset(tile), energy, dot});
  for (uint32_t i = 0; i < kLanes; ++i) {
    scales[i] = SketchScale(profile_.scale_rule, profile_.outlier_sign_bits, energy[i], dot[i]);
  }
  StoreScales(scales, state->exponent,
              cell + format_.scale_offset(tile, format_.outlier_scale_row));
}

// int8 of what the sketch, with its rounded scale, leaves over at the outlier channels, one scale a
// channel of the tile.
void CpuCellCodec::StoreResiduals(SketchState* state, uint32_t tile, uint8_t* cell) const {
  const uint32_t count = profile_.num_outliers;
  float* keys = state->tiles + size_t{tile} * layout_.head_dim * kLanes;  // no longer needed
  ReconstructKeys(cell, tile, keys);
  float scales[kLanes] = {};  // kLanes >= num_outliers
  for (uint32_t o = 0; o < count; ++o) {
    float* residual = state->outliers.data() + size_t{o} * kLanes;
    const float* sketch = keys + size_t{ReadU16(state->channels + 2 * o)} * kLanes;
    for (uint32_t i = 0; i < TokensIn(tile, state->num_tokens); ++i) {
      residual[i] = residual[i] - sketch[i] * state->scales[i];
      scales[o] = std::max(scales[o], std::fabs(residual[i]) / 127.0f);
    }
    scales[o] = scales[o] > kNegligibleResidual ? scales[o] : 0.0f;
  }
  uint8_t stored[2 * kLanes];
  StoreScales(scales, state->exponent, stored);
  std::memcpy(cell + format_.residual_scales + size_t{2} * tile * count, stored, size_t{2} * count);
  for (uint32_t o = 0; o < count; ++o) {
    uint8_t* out = cell + format_.residuals + (size_t{tile} * count + o) * kLanes;
    for (uint32_t i = 0; i < TokensIn(tile, state->num_tokens); ++i) {
      const float x =
          scales[o] == 0.0f ? 0.0f : state->outliers[size_t{o} * kLanes + i] / scales[o];
      const float code = std::clamp(x, -127.0f, 127.0f);
      // To the nearest integer, ties to even, whatever the rounding mode of the machine's library.
      const float rounded = (code + 12582912.0f) - 12582912.0f;
      out[i] = static_cast<uint8_t>(static_cast<int8_t>(rounded));
    }
  }
}

}  // namespace sketchkv
