#pragma once

#include "kernels/cuda/choose_codes.cuh"
#include "kernels/cuda/out_rows.cuh"

// Codes to rows, a token a lane.
namespace sketchkv::cuda {

// What is looked up while codes are decoded, in shared memory: each lane wants other entries.
struct CodeTables {
  float levels[8];                   // by code
  float spread[8];                   // by a code's bits, the highest last
  alignas(16) uint32_t signs[kDim];  // what a channel is xored with

  // By the whole thread block.
  __device__ void Make(const CodePlan& codes, const CodePlan& of_spread,
                       const uint32_t (&diagonal)[kDim / 32]) {
    const uint32_t i = threadIdx.x;
    if (i < 8) {
      levels[i] = codes.levels[i];
      spread[i] = of_spread.levels[(i & 1) << 2 | (i & 2) | i >> 2];
    }
    if (i < kDim) signs[i] = SignMasks<RowType::kFp32>::Word(diagonal, i, false);
    __syncthreads();
  }
};
static_assert(kThreads >= kDim);

// Entry `bits >> shift & (2^kBits - 1)` of a table at `table`.
template <uint32_t kBits>
__device__ inline float LookUp(uint32_t table, uint32_t bits, uint32_t shift) {
  const uint32_t at = shift >= 2 ? bits >> (shift - 2) : bits << (2 - shift);
  float x;
  asm("ld.shared.f32 %0, [%1];\n" : "=f"(x) : "r"(table + (at & ((4u << kBits) - 4))));
  return x;
}

// The coordinates of a key of 2-bit codes.
__device__ inline void UnpackTwoBits(const CodeTables& tables, const uint32_t* planes,
                                     float (&x)[kDim]) {
  const uint32_t levels = SharedAddress(tables.levels);
#pragma unroll
  for (uint32_t w = 0; w < 8; ++w) {
    const uint32_t word = __ldg(planes + w * kTileTokens);
#pragma unroll
    for (uint32_t i = 0; i < 16; ++i) x[16 * w + i] = LookUp<2>(levels, word, 2 * i);
  }
}

// Of 3-bit codes.
__device__ inline void UnpackThreeBits(const CodeTables& tables, const uint32_t* planes,
                                       float (&x)[kDim]) {
  const uint32_t levels = SharedAddress(tables.levels), spread = SharedAddress(tables.spread);
#pragma unroll
  for (uint32_t piece = 0; piece < 4; ++piece) {
    uint32_t words[4] = {};
#pragma unroll
    for (uint32_t w = 0; w < 3; ++w) words[w] = __ldg(planes + (3 * piece + w) * kTileTokens);
#pragma unroll
    for (uint32_t i = 0; i < 24; ++i) {
      x[32 * piece + i] = LookUp<3>(levels, words[i / 8], i % 8 * 4);
    }
#pragma unroll
    for (uint32_t i = 0; i < 8; ++i) {  // bits 3, 7 and 11 from bit 12 i on
      const uint32_t three =
          __funnelshift_r(words[12 * i / 32], words[12 * i / 32 + 1], 12 * i % 32) & 0x888;
      // Times 2^6 + 2^3 + 1 they are bits 9, 10 and 11.
      x[32 * piece + 24 + i] = LookUp<3>(spread, three * 73, 9);
    }
  }
}

// The words of a tile's lines, 2 bits a channel of the lane's token: channel c at PlaceOf(c).
__device__ inline void LoadLines(const CellPlan& plan, const Token& own,
                                 uint32_t (&words)[kDim / 16]) {
  const uint8_t* const cell = own.cell.cell;
#pragma unroll
  for (uint32_t w = 0; w < kDim / 16; ++w) {
    words[w] = 0;
    if (cell != nullptr) {
      words[w] = __ldg(reinterpret_cast<const uint32_t*>(cell + plan.values) + own.tile * kDim +
                       w * kTileTokens + own.token);
    }
  }
#pragma unroll
  for (uint32_t& word : words) word = Transpose(word);
}

// From coordinates to numbers.
__device__ inline void Rotate(const CodeTables& tables, float scale, float (&x)[kDim]) {
  Walsh(x);
#pragma unroll
  for (uint32_t i = 0; i < kDim; i += 4) {
    const uint4 signs = LoadShared(SharedAddress(tables.signs + i));
    x[i] = __uint_as_float(__float_as_uint(x[i]) ^ signs.x);
    x[i + 1] = __uint_as_float(__float_as_uint(x[i + 1]) ^ signs.y);
    x[i + 2] = __uint_as_float(__float_as_uint(x[i + 2]) ^ signs.z);
    x[i + 3] = __uint_as_float(__float_as_uint(x[i + 3]) ^ signs.w);
  }
#pragma unroll
  for (float& y : x) y = y * scale + 0.0f;
}

template <KeyKind kKeys>
__device__ inline void DecodeKeyCodes(const CellPlan& plan, const Token& own,
                                      const CodeTables& tables, float (&x)[kDim]) {
  constexpr uint32_t kWords = kKeys == KeyKind::kThreeBits ? 12 : 8;
  const auto* const planes = reinterpret_cast<const uint32_t*>(own.cell.cell + plan.planes) +
                             own.tile * kWords * kTileTokens + own.token;
  const float scale = StoredScale(ScaleAt(plan, own, 0));
  if constexpr (kKeys == KeyKind::kThreeBits) {
    UnpackThreeBits(tables, planes, x);
  } else {
    UnpackTwoBits(tables, planes, x);
  }
  Rotate(tables, scale, x);
}

__device__ inline void DecodeRotated(const CellPlan& plan, const Token& own,
                                     const CodeTables& tables, const uint32_t (&words)[kDim / 16],
                                     float (&x)[kDim]) {
  const float scale = StoredScale(ScaleAt(plan, own, 1));
  const uint32_t levels = SharedAddress(tables.levels);
#pragma unroll
  for (uint32_t c = 0; c < kDim; ++c) x[c] = LookUp<2>(levels, words[c / 16], PlaceOf(c % 16));
  Rotate(tables, scale, x);
}

// Min-max values, whose group of 32 channels has four: a row to shared memory.
template <RowType kType>
__device__ inline void DecodeRanges(const CellPlan& plan, const Token& own,
                                    const uint32_t (&words)[kDim / 16], uint32_t row) {
  const uint8_t* const ranges =
      own.cell.cell + plan.ranges + own.tile * (kDim / 32 * 64) + own.token * 2;
#pragma unroll
  for (uint32_t group = 0; group < kDim / 32; ++group) {
    const float scale = StoredScale(ranges + 64 * group);
    const auto* const stored = reinterpret_cast<const int16_t*>(ranges + 64 * group + 32);
    const float zero = static_cast<float>(__ldg(stored)) * 0.0625f;
    const auto of_code = [&](float code) { return scale * (code + zero); };
    const float of[4] = {of_code(0.0f), of_code(1.0f), of_code(2.0f), of_code(3.0f)};
    // Channels 4 p to 4 p + 3 of a word are bits 2 p and on of its bytes.
#pragma unroll
    for (uint32_t p = 0; p < 8; ++p) {
      const uint32_t four = words[2 * group + p / 4] >> p % 4 * 2 & 0x03030303u;
      const uint32_t to = row + (32 * group + 4 * p) * BytesOf(kType);
      if constexpr (kType == RowType::kFp32) {
        const auto number = [&](uint32_t i) {
          const bool odd = (four >> 8 * i & 1) != 0, upper = (four >> 8 * i & 2) != 0;
          return ToFinite(upper ? (odd ? of[3] : of[2]) : (odd ? of[1] : of[0]));
        };
        StoreShared(to, make_uint4(number(0), number(1), number(2), number(3)));
      } else {
        // The four as bytes 0 to 7; a code is two of them.
        const uint32_t low = PackPair<kType>(of[0], of[1]), high = PackPair<kType>(of[2], of[3]);
        const uint32_t picks = four * 0x22 + 0x10101010u;
        StoreShared(to,
                    make_uint2(__byte_perm(low, high, picks), __byte_perm(low, high, picks >> 16)));
      }
    }
  }
}

}  // namespace sketchkv::cuda
