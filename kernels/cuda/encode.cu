#include "kernels/cuda/choose_codes.cuh"
#include "kernels/cuda/launching.cuh"

// Rows to cells. A warp takes two tiles, a token a lane: its rows come to shared memory, once, and
// from there to registers.
namespace sketchkv::cuda {
namespace {

constexpr float kNegligibleRange = 0x1p-90f;
constexpr float kSqrtHalfPi = 1.25331413731550025f;

// The warp's rows to shared memory, zeros for tokens that are not there.
__device__ void CopyRows(const uint8_t* rows, size_t stride, const Token& own, uint32_t lane,
                         const RowRoom& room) {
  const uint32_t chunks = kDim * RowRoom::BytesOf(room.type) / 16;  // 16 or 32 a row
  const uint8_t* row = rows + (own.tile * kTileLanes + own.token) * stride;
  for (uint32_t i = 0; i < kWarpTokens; i += 32 / chunks) {
    const uint32_t from = i + lane / chunks;  // the lane whose row it is
    const auto address = __shfl_sync(0xFFFFFFFF, reinterpret_cast<uint64_t>(row), from);
    const bool present = __shfl_sync(0xFFFFFFFF, own.present, from);
    const uint32_t at = lane % chunks * 16;
    CopyAsync(room.shared + from * RowRoom::Pitch(room.type) + at,
              reinterpret_cast<const uint8_t*>(address) + at, present);
  }
  CommitCopies();
  WaitForCopies<0>();
  __syncwarp();
}

// The lane's row, over 2^exponent if it is not 0.
__device__ void LoadRow(const RowRoom& room, uint32_t lane, int exponent, float (&x)[kDim]) {
  const uint32_t row = room.shared + lane * RowRoom::Pitch(room.type);
  if (room.type == RowType::kFp32) {
#pragma unroll
    for (uint32_t i = 0; i < kDim / 4; ++i) {
      const uint4 four = LoadShared(row + 16 * i);
      x[4 * i] = __uint_as_float(four.x), x[4 * i + 1] = __uint_as_float(four.y);
      x[4 * i + 2] = __uint_as_float(four.z), x[4 * i + 3] = __uint_as_float(four.w);
    }
  } else {
    const bool bf16 = room.type == RowType::kBf16;
#pragma unroll
    for (uint32_t i = 0; i < kDim / 8; ++i) {
      const uint4 eight = LoadShared(row + 16 * i);
      const uint32_t pairs[4] = {eight.x, eight.y, eight.z, eight.w};
#pragma unroll
      for (uint32_t p = 0; p < 4; ++p) {
        float2 both = {__uint_as_float(pairs[p] << 16), __uint_as_float(pairs[p] & 0xFFFF0000u)};
        if (!bf16) both = __half22float2(*reinterpret_cast<const __half2*>(&pairs[p]));
        x[8 * i + 2 * p] = both.x;
        x[8 * i + 2 * p + 1] = both.y;
      }
    }
  }
  if (exponent == 0) return;
  const PowerOfTwo down(-exponent);
#pragma unroll
  for (float& y : x) y = down(y);
}

__device__ uint32_t LargestBits(const float (&x)[kDim]) {
  uint32_t largest = 0;
#pragma unroll
  for (const float y : x) largest = max(largest, __float_as_uint(y) & 0x7FFFFFFFu);
  return largest;
}

// Keeps what the caller must know of keys (0) or values (1). Whether all numbers are finite.
__device__ void Check(const Token& own, uint32_t part, const float (&x)[kDim],
                      EncodeArgs::Checks* checks) {
  if (!own.present) return;
  const uint32_t largest = LargestBits(x);
  atomicMax(&checks[own.index].largest[part], largest);
  if (largest < 0x7F800000u) return;
  uint32_t channel = kDim;
#pragma unroll
  for (uint32_t c = kDim; c > 0; --c) {
    if ((__float_as_uint(x[c - 1]) & 0x7FFFFFFFu) >= 0x7F800000u) channel = c - 1;
  }
  // The first is the smallest; 0 is none, so they are kept as what is left to 2^32.
  const uint32_t at = (own.tile * kTileLanes + own.token) * kDim + channel;
  atomicMax(&checks[own.index].not_finite[part], 0u - 1 - at);
}

// kernels/cpu/cpu_encode.cc: what a cell of that largest number is divided by.
__device__ int CellExponent(uint32_t largest) {
  if (largest == 0 || largest >= 0x7F800000u) return 0;
  const int exponent = ilogbf(__uint_as_float(largest));
  return exponent >= -12 && exponent <= 32 ? 0 : exponent;
}

// A scale over 2^exponent to its place; returns what a reader sees, over 2^exponent again.
__device__ float StoreScale(float scale, int exponent, uint8_t* out) {
  if (exponent != 0) scale = PowerOfTwo(exponent)(scale);
  const uint32_t bits = ScaleBits(scale);
  *reinterpret_cast<uint16_t*>(out) = static_cast<uint16_t>(bits);
  scale = ScaleOf(bits);
  return exponent != 0 ? PowerOfTwo(-exponent)(scale) : scale;
}

__device__ void StoreWord(uint8_t* planes, uint32_t word, uint32_t token, uint32_t bits) {
  reinterpret_cast<uint32_t*>(planes)[word * kTileLanes + token] = bits;
}

template <KeyKind kKeys>
__device__ void EncodeKeys(const CodecPlan& plan, const Token& own, const RowRoom& rows,
                           uint32_t lane, int exponent, EncodeArgs::Checks* checks,
                           Magnitudes magnitudes) {
  constexpr uint32_t kWords = kKeys == KeyKind::kThreeBits ? 12 : 8;
  float y[kDim];
  LoadRow(rows, lane, exponent, y);
  if (checks != nullptr) Check(own, 0, y, checks);
  const float energy = TreeSum([&](uint32_t i) { return y[i] * y[i]; });
  uint8_t* const planes = own.cell.cell + plan.cell.planes + own.tile * kWords * 64;
  const bool stored = own.cell.cell != nullptr;
  float scale;
  if constexpr (kKeys == KeyKind::kSigns) {
    float dot = 0.0f;
#pragma unroll
    for (uint32_t block = 0; block < 2; ++block) {
      if (block > 0) LoadRow(rows, lane, exponent, y);
      ChangeSigns(plan.cell.key_signs[block], y);
      Walsh(y);
#pragma unroll
      for (uint32_t w = 0; w < 4; ++w) {
        uint32_t word = 0;
#pragma unroll
        for (uint32_t i = 0; i < 32; ++i) word |= (y[32 * w + i] > 0.0f ? 1u : 0u) << i;
        if (stored) StoreWord(planes, 4 * block + w, own.token, word);
      }
      dot = dot + TreeSum([&](uint32_t i) { return fabsf(y[i]); });
    }
    scale = energy == 0.0f || dot == 0.0f ? 0.0f
            : plan.exact_key_scale        ? energy / dot
                                          : kSqrtHalfPi / 256.0f * sqrtf(energy);
  } else {
    constexpr uint32_t kBits = kKeys == KeyKind::kThreeBits ? 3 : 2;
    ChangeSigns(plan.cell.key_signs[0], y);
    Walsh(y);
    const float inverse =
        SearchUnit<kBits>(plan.keys, plan.spread, plan.unit_factors, plan.key_search_dot,
                          plan.key_search_square, y, energy * static_cast<float>(kDim), magnitudes);
    RowSums sums;
#pragma unroll
    for (uint32_t piece = 0; piece < 4; ++piece) {  // 32 coordinates: two or three words
      uint32_t words[3] = {};
#pragma unroll
      for (uint32_t i = 0; i < 32; ++i) {
        const float coordinate = y[32 * piece + i];
        const bool spread = kBits == 3 && IsSpread(i);
        const Code code = CodeOf<kBits>(spread ? plan.spread : plan.keys, coordinate * inverse);
        sums.Add(spread ? i - 24 : i, coordinate, code.level);
        if (kBits == 2) {
          words[i / 16] |= code.bits << i % 16 * 2;
        } else if (!spread) {
          words[i / 8] |= code.bits << i % 8 * 4;
        } else {
#pragma unroll
          for (uint32_t b = 0; b < 3; ++b) {  // the highest first
            const uint32_t nibble = 3 * (i - 24) + b;
            words[nibble / 8] |= (code.bits >> (2 - b) & 1) << (nibble % 8 * 4 + 3);
          }
        }
      }
#pragma unroll
      for (uint32_t w = 0; w < kBits; ++w) {
        if (stored) StoreWord(planes, kBits * piece + w, own.token, own.present ? words[w] : 0);
      }
    }
    scale = sums.Scale(plan.exact_key_scale, energy);
  }
  if (stored) {
    const uint32_t rows_of_tile = plan.cell.value_kind == ValueKind::kRotated ? 2 : 1;
    StoreScale(
        scale, exponent,
        own.cell.cell + plan.cell.scales + (own.tile * rows_of_tile * kTileLanes + own.token) * 2);
  }
}

// A line of 2-bit codes from what lanes voted on: bit k of `low` and `high` to bits 2 k and 2 k
// + 1.
__device__ uint32_t Interleave(uint32_t low, uint32_t high) {
  const auto spread = [](uint32_t x) {
    x = (x | x << 8) & 0x00FF00FFu;
    x = (x | x << 4) & 0x0F0F0F0Fu;
    x = (x | x << 2) & 0x33333333u;
    return (x | x << 1) & 0x55555555u;
  };
  return spread(low) | spread(high) << 1;
}

// Codes of 128 channels, sixteen to a word, to the lines of both tiles.
__device__ void StoreLines(const CodecPlan& plan, const Token& own, uint32_t lane,
                           const uint32_t (&codes)[kDim / 16]) {
  uint32_t low[4] = {}, high[4] = {};  // of channels lane, lane + 32, ...
#pragma unroll
  for (uint32_t c = 0; c < kDim; ++c) {
    const uint32_t code = own.present ? codes[c / 16] >> c % 16 * 2 : 0;
    const uint32_t low_votes = __ballot_sync(0xFFFFFFFF, (code & 1) != 0);
    const uint32_t high_votes = __ballot_sync(0xFFFFFFFF, (code & 2) != 0);
    if (c % 32 == lane) {
      low[c / 32] = low_votes;
      high[c / 32] = high_votes;
    }
  }
#pragma unroll
  for (uint32_t tile = 0; tile < 2; ++tile) {
    const uint32_t first = tile * kTileLanes;
    const auto cell = reinterpret_cast<uint8_t*>(
        __shfl_sync(0xFFFFFFFF, reinterpret_cast<uint64_t>(own.cell.cell), first));
    const uint32_t tile_of_cell = __shfl_sync(0xFFFFFFFF, own.tile, first);
    if (cell == nullptr) continue;
    auto* lines = reinterpret_cast<uint32_t*>(cell + plan.cell.values + tile_of_cell * 512);
#pragma unroll
    for (uint32_t i = 0; i < 4; ++i) {
      lines[32 * i + lane] = Interleave(low[i] >> first & 0xFFFF, high[i] >> first & 0xFFFF);
    }
  }
}

// Min-max values of 32 channels from `begin` on: codes, two bits each.
template <typename Row>
__device__ uint64_t EncodeRange(const Row& row, int exponent, uint8_t* ranges) {
  float low = row(0), high = row(0);
#pragma unroll
  for (uint32_t c = 1; c < 32; ++c) {
    const float x = row(c);
    low = x < low ? x : low;
    high = high > x ? high : x;
  }
  const float by_range = (high - low) / 3.0f, by_zero = fabsf(low) / 2040.0f;
  float scale = by_range > by_zero ? by_range : by_zero;
  scale = scale > kNegligibleRange ? scale : 0.0f;
  const uint32_t bits = ScaleBits(PowerOfTwo(exponent)(scale));
  scale = PowerOfTwo(-exponent)(ScaleOf(bits));
  const float inverse = scale > 0.0f ? 1.0f / scale : 0.0f;
  float zero = low * inverse * 16.0f;
  zero = zero < 32767.0f ? zero : 32767.0f;
  zero = RoundNearest(zero > -32767.0f ? zero : -32767.0f);
  if (ranges != nullptr) {
    *reinterpret_cast<uint16_t*>(ranges) = static_cast<uint16_t>(bits);
    *reinterpret_cast<int16_t*>(ranges + 32) = static_cast<int16_t>(zero);
  }
  const float offset = zero * 0.0625f;
  uint64_t codes = 0;
#pragma unroll
  for (uint32_t c = 0; c < 32; ++c) {
    float code = row(c) * inverse - offset;
    code = code < 3.0f ? code : 3.0f;
    code = RoundNearest(code > 0.0f ? code : 0.0f);
    codes |= uint64_t{static_cast<uint32_t>(code)} << 2 * c;
  }
  return codes;
}

template <ValueKind kValues>
__device__ void EncodeValues(const CodecPlan& plan, const Token& own, const RowRoom& rows,
                             uint32_t lane, int exponent, EncodeArgs::Checks* checks,
                             Magnitudes magnitudes) {
  float y[kDim];
  LoadRow(rows, lane, exponent, y);
  if (checks != nullptr) Check(own, 1, y, checks);
  uint32_t codes[kDim / 16] = {};
  const bool stored = own.cell.cell != nullptr;
  if constexpr (kValues == ValueKind::kRotated) {
    const float energy = TreeSum([&](uint32_t i) { return y[i] * y[i]; });
    ChangeSigns(plan.cell.value_signs, y);
    Walsh(y);
    const float inverse =
        SearchUnit<2>(plan.values, plan.values, plan.unit_factors, plan.value_search_dot,
                      plan.value_search_square, y, energy * static_cast<float>(kDim), magnitudes);
    RowSums sums;
#pragma unroll
    for (uint32_t i = 0; i < kDim; ++i) {
      const Code code = CodeOf<2>(plan.values, y[i] * inverse);
      sums.Add(i, y[i], code.level);
      codes[i / 16] |= code.bits << i % 16 * 2;
    }
    const float scale = sums.Scale(plan.exact_value_scale, energy);
    if (stored) {
      StoreScale(
          scale, exponent,
          own.cell.cell + plan.cell.scales + ((own.tile * 2 + 1) * kTileLanes + own.token) * 2);
    }
  } else {
#pragma unroll
    for (uint32_t group = 0; group < kDim / 32; ++group) {
      uint8_t* const ranges =
          stored ? own.cell.cell + plan.cell.ranges + own.tile * 256 + group * 64 + own.token * 2
                 : nullptr;
      const uint64_t both =
          EncodeRange([&](uint32_t c) { return y[32 * group + c]; }, exponent, ranges);
      codes[2 * group] = static_cast<uint32_t>(both);
      codes[2 * group + 1] = static_cast<uint32_t>(both >> 32);
    }
  }
  StoreLines(plan, own, lane, codes);
}

// Zeros between the scales and the planes.
__device__ void ClearPadding(const CellPlan& plan, const Token& own, uint32_t lane) {
  const uint32_t rows = plan.value_kind == ValueKind::kRotated ? 2 : 1;
  const uint32_t end = plan.scales + (rows * 32 << plan.block_tiles_log2);
  if (own.cell.cell == nullptr || own.tile != 0) return;
  const uint32_t at = end + lane % kTileLanes * 2;
  if (at < plan.planes) *reinterpret_cast<uint16_t*>(own.cell.cell + at) = 0;
}

// What a warp begins with. `again`: only cells whose largest number, found by the launch before,
// wants an exponent; others get no cell and are not stored again.
struct Start {
  Token own;
  int exponent = 0;

  __device__ Start(const CodecPlan& plan, const EncodeArgs& args, uint32_t part, bool again,
                   uint32_t lane)
      : own(FindToken(plan.cell, args.cells, args.num_cells, lane)) {
    if (!again) return;
    if (own.cell.cell != nullptr) exponent = CellExponent(args.checks[own.index].largest[part]);
    if (exponent == 0) own.cell.cell = nullptr;
  }
};

// Keys (part 0) or values (part 1) of all cells.
template <typename EncodePart>
__device__ void EncodeTiles(const CodecPlan& plan, const EncodeArgs& args, uint32_t part,
                            bool again, const EncodePart& encode) {
  extern __shared__ __align__(128) uint8_t shared[];
  __shared__ uint32_t bins[kWarps][kBins * 32];
  const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const Start start(plan, args, part, again, lane);
  if (!__any_sync(0xFFFFFFFF, start.own.cell.cell != nullptr)) return;
  const RowRoom room = {SharedAddress(shared) + warp * RowRoom::Bytes(args.type), args.type};
  CopyRows(part == 0 ? start.own.cell.keys : start.own.cell.values,
           part == 0 ? args.key_stride : args.value_stride, start.own, lane, room);
  encode(start.own, room, lane, start.exponent, again ? nullptr : args.checks,
         Magnitudes(bins[warp], lane));
}

template <KeyKind kKeys>
__global__ void __launch_bounds__(kThreads, 3)
    EncodeKeysOf(const __grid_constant__ CodecPlan plan, const __grid_constant__ EncodeArgs args,
                 bool again) {
  EncodeTiles(plan, args, 0, again,
              [&](const Token& own, const RowRoom& room, uint32_t lane, int exponent,
                  EncodeArgs::Checks* checks, Magnitudes magnitudes) {
                EncodeKeys<kKeys>(plan, own, room, lane, exponent, checks, magnitudes);
                ClearPadding(plan.cell, own, lane);
              });
}

template <ValueKind kValues>
__global__ void __launch_bounds__(kThreads, 3)
    EncodeValuesOf(const __grid_constant__ CodecPlan plan, const __grid_constant__ EncodeArgs args,
                   bool again) {
  EncodeTiles(plan, args, 1, again,
              [&](const Token& own, const RowRoom& room, uint32_t lane, int exponent,
                  EncodeArgs::Checks* checks, Magnitudes magnitudes) {
                EncodeValues<kValues>(plan, own, room, lane, exponent, checks, magnitudes);
              });
}

}  // namespace

cudaError_t LaunchEncode(const CodecPlan& plan, const EncodeArgs& args, cudaStream_t stream) {
  if (args.num_cells == 0) return cudaSuccess;
  // A launch over all tiles, and one over those that want an exponent.
  const auto launch = [&](auto kernel) {
    for (const bool again : {false, true}) {
      const cudaError_t launched =
          LaunchKernel(kernel, TileBlocks(plan.cell, args.num_cells), kThreads,
                       kWarps * RowRoom::Bytes(args.type), stream, plan, args, again);
      if (launched != cudaSuccess) return launched;
    }
    return cudaSuccess;
  };
  const cudaError_t keys = WithKeyKind(
      plan.cell, [&](auto kind) { return launch(EncodeKeysOf<decltype(kind)::value>); });
  if (keys != cudaSuccess) return keys;
  return WithValueKind(plan.cell,
                       [&](auto kind) { return launch(EncodeValuesOf<decltype(kind)::value>); });
}

}  // namespace sketchkv::cuda
