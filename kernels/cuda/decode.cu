#include "kernels/cuda/launching.cuh"
#include "kernels/cuda/token_rows.cuh"

// Cells to rows, a token a lane; rows go out through shared memory.
namespace sketchkv::cuda {
namespace {

// Of the lowest kBits of `code`. Levels are the same on both sides of 0.
template <uint32_t kBits>
__device__ float LevelOf(const CodePlan& plan, uint32_t code) {
  constexpr uint32_t kHalf = 1u << (kBits - 1);
  const bool positive = (code & kHalf) != 0;
  const uint32_t above = positive ? code : ~code;
  float level;
  if constexpr (kBits == 2) {
    level = (above & 1) != 0 ? plan.levels[3] : plan.levels[2];
  } else {
    const float low = (above & 1) != 0 ? plan.levels[5] : plan.levels[4];
    const float high = (above & 1) != 0 ? plan.levels[7] : plan.levels[6];
    level = (above & 2) != 0 ? high : low;
  }
  return positive ? level : -level;
}

__device__ uint32_t Planes(const uint8_t* planes, uint32_t word, uint32_t token) {
  return __ldg(reinterpret_cast<const uint32_t*>(planes) + word * kTileLanes + token);
}

// S^T z of a key of 256 signs. Its sums are small integers: both blocks of rows go side by side as
// halves, exactly.
__device__ void UnpackSigns(const CodecPlan& plan, const uint8_t* planes, uint32_t token,
                            float (&x)[kDim]) {
  __half2 both[kDim];
#pragma unroll
  for (uint32_t w = 0; w < 4; ++w) {
    const uint32_t first = Planes(planes, w, token), second = Planes(planes, 4 + w, token);
#pragma unroll
    for (uint32_t i = 0; i < 32; ++i) {
      // 1.0 with the sign of a bit that is 0.
      const uint32_t signs = (~first >> i & 1) << 15 | (~second >> i & 1) << 31;
      const uint32_t ones = 0x3C003C00u | signs;
      both[32 * w + i] = *reinterpret_cast<const __half2*>(&ones);
    }
  }
#pragma unroll
  for (uint32_t h = 1; h < kDim; h *= 2) {
#pragma unroll
    for (uint32_t i = 0; i < kDim; ++i) {
      if ((i & h) != 0) continue;
      const __half2 a = both[i], b = both[i + h];
      both[i] = __hadd2(a, b);
      both[i + h] = __hsub2(a, b);
    }
  }
#pragma unroll
  for (uint32_t c = 0; c < kDim; ++c) {
    const float2 y = __half22float2(both[c]);
    const uint32_t shift = 31 - c % 32;
    const uint32_t first = plan.cell.key_signs[0][c / 32] << shift & 0x80000000u;
    const uint32_t second = plan.cell.key_signs[1][c / 32] << shift & 0x80000000u;
    x[c] = __uint_as_float(__float_as_uint(y.x) ^ first) +
           __uint_as_float(__float_as_uint(y.y) ^ second);
  }
}

template <uint32_t kBits>
__device__ void UnpackCodes(const CodecPlan& plan, const uint8_t* planes, uint32_t token,
                            float (&x)[kDim]) {
#pragma unroll
  for (uint32_t piece = 0; piece < 4; ++piece) {
    uint32_t words[3] = {};
#pragma unroll
    for (uint32_t w = 0; w < kBits; ++w) words[w] = Planes(planes, kBits * piece + w, token);
#pragma unroll
    for (uint32_t i = 0; i < 32; ++i) {
      float& y = x[32 * piece + i];
      if (kBits == 2) {
        y = LevelOf<2>(plan.keys, words[i / 16] >> i % 16 * 2);
      } else if (!IsSpread(i)) {
        y = LevelOf<3>(plan.keys, words[i / 8] >> i % 8 * 4);
      } else {
        uint32_t code = 0;
#pragma unroll
        for (uint32_t b = 0; b < 3; ++b) {
          const uint32_t nibble = 3 * (i - 24) + b;
          code |= (words[nibble / 8] >> (nibble % 8 * 4 + 3) & 1) << (2 - b);
        }
        y = LevelOf<3>(plan.spread, code);
      }
    }
  }
  Walsh(x);
  ChangeSigns(plan.cell.key_signs[0], x);
}

// take(channel, code) for each channel's 2-bit code of the lane's token.
template <typename Take>
__device__ void EachCode(const uint8_t* lines, uint32_t lane, const Take& take) {
  const uint32_t shift = lane % kTileLanes * 2;
#pragma unroll
  for (uint32_t i = 0; i < kDim / 4; ++i) {
    const uint4 four = __ldg(reinterpret_cast<const uint4*>(lines) + i);
    take(4 * i, four.x >> shift & 3);
    take(4 * i + 1, four.y >> shift & 3);
    take(4 * i + 2, four.z >> shift & 3);
    take(4 * i + 3, four.w >> shift & 3);
  }
}

__device__ float StoredScale(const uint8_t* scale) {
  return ScaleOf(__ldg(reinterpret_cast<const uint16_t*>(scale)));
}

__device__ void Scale(float scale, float (&x)[kDim]) {
#pragma unroll
  for (float& y : x) y = y * scale + 0.0f;
}

__device__ uint32_t ToBf16(float x) {
  const float largest = __uint_as_float(0x7F7F0000u);
  x = x < largest ? x : largest;
  const uint32_t bits = __float_as_uint(x > -largest ? x : -largest);
  return (bits + 0x7FFF + (bits >> 16 & 1)) >> 16;
}
__device__ uint32_t ToHalf(float x) {
  x = x < 65504.0f ? x : 65504.0f;
  return __half_as_ushort(__float2half_rn(x > -65504.0f ? x : -65504.0f));
}
__device__ uint32_t ToFinite(float x) {
  const float largest = __uint_as_float(0x7F7FFFFFu);
  x = x < largest ? x : largest;
  return __float_as_uint(x > -largest ? x : -largest);
}

// The lane's row to shared memory, then all of the warp's to where they belong.
__device__ void StoreRows(const float (&x)[kDim], const Token& own, uint8_t* rows, size_t stride,
                          uint32_t lane, const RowRoom& room) {
  const uint32_t row = room.shared + lane * RowRoom::Pitch(room.type);
  if (room.type == RowType::kFp32) {
#pragma unroll
    for (uint32_t i = 0; i < kDim / 4; ++i) {
      StoreShared(row + 16 * i, make_uint4(ToFinite(x[4 * i]), ToFinite(x[4 * i + 1]),
                                           ToFinite(x[4 * i + 2]), ToFinite(x[4 * i + 3])));
    }
  } else {
    const bool bf16 = room.type == RowType::kBf16;
#pragma unroll
    for (uint32_t i = 0; i < kDim / 8; ++i) {
      uint32_t pairs[4];
#pragma unroll
      for (uint32_t p = 0; p < 4; ++p) {
        const float even = x[8 * i + 2 * p], odd = x[8 * i + 2 * p + 1];
        pairs[p] = bf16 ? ToBf16(even) | ToBf16(odd) << 16 : ToHalf(even) | ToHalf(odd) << 16;
      }
      StoreShared(row + 16 * i, make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]));
    }
  }
  __syncwarp();
  const uint32_t chunks = kDim * RowRoom::BytesOf(room.type) / 16;
  uint8_t* const out = rows + (own.tile * kTileLanes + own.token) * stride;
  for (uint32_t i = 0; i < kWarpTokens; i += 32 / chunks) {
    const uint32_t from = i + lane / chunks;
    const auto address = __shfl_sync(0xFFFFFFFF, reinterpret_cast<uint64_t>(out), from);
    const bool present = __shfl_sync(0xFFFFFFFF, own.present && rows != nullptr, from);
    const uint32_t at = lane % chunks * 16;
    const uint4 chunk = LoadShared(room.shared + from * RowRoom::Pitch(room.type) + at);
    if (present) *reinterpret_cast<uint4*>(reinterpret_cast<uint8_t*>(address) + at) = chunk;
  }
}

__device__ RowRoom RoomOf(const DecodeArgs& args) {
  extern __shared__ __align__(128) uint8_t shared[];
  return {SharedAddress(shared) + threadIdx.x / 32 * RowRoom::Bytes(args.type), args.type};
}

template <KeyKind kKeys>
__global__ void __launch_bounds__(kThreads, 3)
    DecodeKeys(const __grid_constant__ CodecPlan plan, const __grid_constant__ DecodeArgs args) {
  constexpr uint32_t kWords = kKeys == KeyKind::kThreeBits ? 12 : 8;
  const uint32_t lane = threadIdx.x % 32;
  const Token own = FindToken(plan.cell, args.cells, args.num_cells, lane);
  float x[kDim] = {};
  if (own.cell.cell != nullptr) {
    const uint8_t* const planes = own.cell.cell + plan.cell.planes + own.tile * kWords * 64;
    if constexpr (kKeys == KeyKind::kSigns) {
      UnpackSigns(plan, planes, own.token, x);
    } else {
      UnpackCodes<kKeys == KeyKind::kThreeBits ? 3 : 2>(plan, planes, own.token, x);
    }
    const uint32_t rows = plan.cell.value_kind == ValueKind::kRotated ? 2 : 1;
    Scale(StoredScale(own.cell.cell + plan.cell.scales +
                      (own.tile * rows * kTileLanes + own.token) * 2),
          x);
  }
  StoreRows(x, own, own.cell.keys, args.key_stride, lane, RoomOf(args));
}

template <ValueKind kValues>
__global__ void __launch_bounds__(kThreads, 3)
    DecodeValues(const __grid_constant__ CodecPlan plan, const __grid_constant__ DecodeArgs args) {
  const uint32_t lane = threadIdx.x % 32;
  const Token own = FindToken(plan.cell, args.cells, args.num_cells, lane);
  float x[kDim] = {};
  if (own.cell.cell != nullptr) {
    const uint8_t* const lines = own.cell.cell + plan.cell.values + own.tile * 512;
    if constexpr (kValues == ValueKind::kRotated) {
      EachCode(lines, lane,
               [&](uint32_t c, uint32_t code) { x[c] = LevelOf<2>(plan.values, code); });
      Walsh(x);
      ChangeSigns(plan.cell.value_signs, x);
      Scale(StoredScale(own.cell.cell + plan.cell.scales +
                        ((own.tile * 2 + 1) * kTileLanes + own.token) * 2),
            x);
    } else {
      float scales[kDim / 32], zeros[kDim / 32];
#pragma unroll
      for (uint32_t group = 0; group < kDim / 32; ++group) {
        const uint8_t* const range =
            own.cell.cell + plan.cell.ranges + own.tile * 256 + group * 64 + own.token * 2;
        scales[group] = StoredScale(range);
        zeros[group] =
            static_cast<float>(__ldg(reinterpret_cast<const int16_t*>(range + 32))) * 0.0625f;
      }
      EachCode(lines, lane, [&](uint32_t c, uint32_t code) {
        x[c] = scales[c / 32] * (static_cast<float>(code) + zeros[c / 32]);
      });
    }
  }
  StoreRows(x, own, own.cell.values, args.value_stride, lane, RoomOf(args));
}

}  // namespace

cudaError_t LaunchDecode(const CodecPlan& plan, const DecodeArgs& args, cudaStream_t stream) {
  if (args.num_cells == 0) return cudaSuccess;
  const auto launch = [&](auto kernel) {
    return LaunchKernel(kernel, TileBlocks(plan.cell, args.num_cells), kThreads,
                        kWarps * RowRoom::Bytes(args.type), stream, plan, args);
  };
  const cudaError_t keys =
      WithKeyKind(plan.cell, [&](auto kind) { return launch(DecodeKeys<decltype(kind)::value>); });
  if (keys != cudaSuccess) return keys;
  return WithValueKind(plan.cell,
                       [&](auto kind) { return launch(DecodeValues<decltype(kind)::value>); });
}

}  // namespace sketchkv::cuda
