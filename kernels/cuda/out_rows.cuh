#pragma once

#include "kernels/cuda/token_rows.cuh"

// Decoded numbers to rows of a type: rounded to nearest even, and to the largest finite number
// where they are beyond it, as on the CPU.
namespace sketchkv::cuda {

// Two numbers side by side.
template <RowType kType>
__device__ inline uint32_t PackPair(float first, float second) {
  uint32_t pair;
  if constexpr (kType == RowType::kBf16) {
    asm("{\n"
        "cvt.rn.bf16x2.f32 %0, %2, %1;\n"
        "min.bf16x2 %0, %0, %3;\n"
        "max.bf16x2 %0, %0, %4;\n"
        "}\n"
        : "=&r"(pair)
        : "f"(first), "f"(second), "r"(0x7F7F7F7Fu), "r"(0xFF7FFF7Fu));
  } else {
    asm("{\n"
        "cvt.rn.f16x2.f32 %0, %2, %1;\n"
        "min.f16x2 %0, %0, %3;\n"
        "max.f16x2 %0, %0, %4;\n"
        "}\n"
        : "=&r"(pair)
        : "f"(first), "f"(second), "r"(0x7BFF7BFFu), "r"(0xFBFFFBFFu));
  }
  return pair;
}
__device__ inline uint32_t ToFinite(float x) {
  const float largest = __uint_as_float(0x7F7FFFFFu);
  x = x < largest ? x : largest;
  return __float_as_uint(x > -largest ? x : -largest);
}

// Eight numbers in a row: one chunk of 16 bytes, or two. put(number of the chunk, chunk).
template <RowType kType, typename Put>
__device__ inline void PackEight(const float* x, const Put& put) {
  if constexpr (kType == RowType::kFp32) {
    put(0, make_uint4(ToFinite(x[0]), ToFinite(x[1]), ToFinite(x[2]), ToFinite(x[3])));
    put(1, make_uint4(ToFinite(x[4]), ToFinite(x[5]), ToFinite(x[6]), ToFinite(x[7])));
  } else {
    put(0, make_uint4(PackPair<kType>(x[0], x[1]), PackPair<kType>(x[2], x[3]),
                      PackPair<kType>(x[4], x[5]), PackPair<kType>(x[6], x[7])));
  }
}

// The lane's row to shared memory.
template <RowType kType>
__device__ inline void PutRow(const float (&x)[kDim], uint32_t row) {
#pragma unroll
  for (uint32_t i = 0; i < kDim / 8; ++i) {
    PackEight<kType>(x + 8 * i, [&](uint32_t chunk, uint4 bits) {
      StoreShared(row + i * 8 * BytesOf(kType) + chunk * 16, bits);
    });
  }
}

// All of the warp's rows from shared memory to where they belong, if anywhere.
template <RowType kType>
__device__ inline void StoreRows(const Token& own, uint8_t* rows, size_t stride,
                                 const RowRoom<kType>& room) {
  const uint32_t left = rows != nullptr ? own.Left() : 0;
  __syncwarp();
  room.EachChunk(own, rows, stride, [&](uint32_t from, uint8_t* to, uint32_t token) {
    if (token < left) *reinterpret_cast<uint4*>(to) = LoadShared(from);
  });
  __syncwarp();
}

__device__ inline float StoredScale(const uint8_t* scale) {
  return ScaleOf(__ldg(reinterpret_cast<const uint16_t*>(scale)));
}

}  // namespace sketchkv::cuda
