#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <vector>

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

float Scale(ScaleRule rule, uint32_t sign_bits, float energy, float dot) {
  if (energy == 0.0f || dot == 0.0f) return 0.0f;
  if (rule == ScaleRule::kExact) return energy / dot;
  return kSqrtHalfPi / static_cast<float>(sign_bits) * std::sqrt(energy);
}

}  // namespace

// Of one cell's keys while they are sketched. Tiles are divided by the cell's power of two.
struct CpuCellCodec::SketchState {
  float* tiles = nullptr;  // [num_tiles][head_dim][16]; outlier rows become 0 as tiles are sketched
  uint32_t num_tiles = 0;
  std::vector<uint32_t> channels;     // of the group of the tile at hand
  std::vector<float> outliers;        // [num_tiles][num_outliers][16]: what was in those rows
  std::vector<float> scales;          // [num_tiles][16]
  std::vector<float> outlier_scales;  // second sketch: likewise

  [[nodiscard]] float* tile(uint32_t tile_index, uint32_t dim) {
    return tiles + size_t{tile_index} * dim * kLanes;
  }
};

void CpuCellCodec::EncodeKeys(float* tiles, uint32_t num_tiles, int exponent, CellHeader* header,
                              uint8_t* cell) const {
  SketchState state;
  state.tiles = tiles;
  state.num_tiles = num_tiles;
  state.outliers.resize(size_t{num_tiles} * profile_.num_outliers * kLanes);
  state.scales.resize(size_t{num_tiles} * kLanes);
  const bool second_sketch = profile_.outlier_method == OutlierMethod::kSketch;
  if (second_sketch) state.outlier_scales.resize(size_t{num_tiles} * kLanes);

  const uint32_t group_tiles = std::max(1u, profile_.outlier_group_tokens / kLanes);
  for (uint32_t tile = 0; tile < num_tiles; ++tile) {
    if (second_sketch && tile % group_tiles == 0) {
      ChooseChannels(&state, tile / group_tiles, cell);
    } else if (profile_.outlier_method == OutlierMethod::kResidual && tile == 0) {
      ChooseChannels(&state, 0, cell);
    }
    SketchTile(&state, tile, cell);
  }
  const int key_exponent =
      StoreHalves(state.scales.data(), state.scales.size(), cell + format_.key_scales);
  header->key_exponent = HeaderExponent(key_exponent, exponent);
  if (second_sketch) {
    const int outlier_exponent = StoreHalves(
        state.outlier_scales.data(), state.outlier_scales.size(), cell + format_.outlier_scales);
    header->outlier_exponent = HeaderExponent(outlier_exponent, exponent);
  } else if (profile_.num_outliers > 0) {
    header->outlier_exponent = HeaderExponent(StoreResiduals(&state, key_exponent, cell), exponent);
  }
}

void CpuCellCodec::ChooseChannels(SketchState* state, uint32_t group, uint8_t* cell) const {
  uint32_t first = 0;
  uint32_t count = state->num_tiles;
  if (profile_.outlier_method == OutlierMethod::kSketch) {
    const uint32_t group_tiles = profile_.outlier_group_tokens / kLanes;
    first = group * group_tiles;
    count = std::min(group_tiles, state->num_tiles - first);
  }
  std::vector<float> energy(layout_.head_dim);
  kernels_.channel_energy(state->tile(first, layout_.head_dim), count, layout_.head_dim,
                          energy.data());
  state->channels = LargestChannels(energy, profile_.num_outliers);
  uint8_t* out = cell + format_.outlier_channels + size_t{2} * group * profile_.num_outliers;
  for (uint32_t channel : state->channels) {
    WriteU16(out, static_cast<uint16_t>(channel));
    out += 2;
  }
}

// Sketches one tile without its outlier channels, then, for the second sketch, those alone.
void CpuCellCodec::SketchTile(SketchState* state, uint32_t tile_index, uint8_t* cell) const {
  const uint32_t dim = layout_.head_dim;
  float* tile = state->tile(tile_index, dim);
  float* outliers = state->outliers.data() + size_t{tile_index} * profile_.num_outliers * kLanes;
  for (size_t o = 0; o < state->channels.size(); ++o) {
    float* row = tile + size_t{state->channels[o]} * kLanes;
    std::copy_n(row, kLanes, outliers + o * kLanes);
    std::fill_n(row, kLanes, 0.0f);
  }
  float energy[kLanes], dot[kLanes];
  ProjectionArgs projection = projection_->Args();
  kernels_.sketch_tile({&projection, tile,
                        cell + format_.signs + tile_index * format_.sign_tile_bytes(), energy,
                        dot});
  float* scales = state->scales.data() + size_t{tile_index} * kLanes;
  for (uint32_t i = 0; i < kLanes; ++i) {
    scales[i] = Scale(profile_.scale_rule, profile_.sign_bits, energy[i], dot[i]);
  }
  if (profile_.outlier_method != OutlierMethod::kSketch) return;

  std::fill_n(tile, size_t{dim} * kLanes, 0.0f);
  for (size_t o = 0; o < state->channels.size(); ++o) {
    std::copy_n(outliers + o * kLanes, kLanes, tile + size_t{state->channels[o]} * kLanes);
  }
  projection = projection_->Args(profile_.outlier_sign_bits);
  kernels_.sketch_tile({&projection, tile,
                        cell + format_.outlier_signs + tile_index * format_.outlier_tile_bytes(),
                        energy, dot});
  scales = state->outlier_scales.data() + size_t{tile_index} * kLanes;
  for (uint32_t i = 0; i < kLanes; ++i) {
    scales[i] = Scale(profile_.scale_rule, profile_.outlier_sign_bits, energy[i], dot[i]);
  }
}

// int8 of what the sketch, with its rounded scale, leaves over at the outlier channels. Returns the
// exponent of their scales.
int CpuCellCodec::StoreResiduals(SketchState* state, int key_exponent, uint8_t* cell) const {
  const uint32_t dim = layout_.head_dim;
  const uint32_t count = profile_.num_outliers;
  const ProjectionArgs projection = projection_->Args();
  const float unit = PowerOfTwo(key_exponent);
  float scales[kLanes] = {};  // kLanes >= num_outliers
  for (uint32_t tile = 0; tile < state->num_tiles; ++tile) {
    float* keys = state->tile(tile, dim);  // no longer needed: takes the reconstruction
    kernels_.reconstruct_tile(projection, cell + format_.signs + tile * format_.sign_tile_bytes(),
                              cell + format_.key_scales + size_t{2} * tile * kLanes, keys);
    for (uint32_t o = 0; o < count; ++o) {
      float* residual = state->outliers.data() + (size_t{tile} * count + o) * kLanes;
      const float* sketch = keys + size_t{state->channels[o]} * kLanes;
      for (uint32_t i = 0; i < kLanes; ++i) {
        residual[i] = residual[i] - sketch[i] * unit;
        scales[o] = std::max(scales[o], std::fabs(residual[i]) / 127.0f);
      }
    }
  }
  for (float& scale : scales) scale = scale > kNegligibleResidual ? scale : 0.0f;
  uint8_t halves[2 * kLanes];
  const int exponent = StoreHalves(scales, kLanes, halves);
  std::memcpy(cell + format_.residual_scales, halves, size_t{2} * count);
  for (size_t row = 0; row < size_t{state->num_tiles} * count; ++row) {
    const float scale = scales[row % count];
    for (uint32_t i = 0; i < kLanes; ++i) {
      const float x = scale == 0.0f ? 0.0f : state->outliers[row * kLanes + i] / scale;
      const float code = std::clamp(x, -127.0f, 127.0f);
      // To the nearest integer, ties to even, whatever the rounding mode of the machine's library.
      const float rounded = (code + 12582912.0f) - 12582912.0f;
      cell[format_.residuals + row * kLanes + i] =
          static_cast<uint8_t>(static_cast<int8_t>(rounded));
    }
  }
  return exponent;
}

}  // namespace sketchkv
