#pragma once

// The kernels of *.inc are compiled twice: for CPUs, where sixteen lanes are one value, and by
// nvcc, where each lane is a thread (kernels/cuda/general). Nothing but macros, so that they emit
// nothing.
#ifdef __CUDACC__
#define SKETCHKV_FN __device__
#define SKETCHKV_INLINE_FN __device__ __forceinline__
// Arrays of constants, which functions index.
#define SKETCHKV_TABLE __device__ constexpr
// Loops whose turns go on at a time.
#define SKETCHKV_UNROLL _Pragma("unroll")
// float name[used][16] until the end of the scope, in the memory of the sixteen threads.
#define SKETCHKV_LANE_ROWS(name, most, used)               \
  const LaneRoom name##_room(sizeof(float) * 16 * (used)); \
  float* const name = reinterpret_cast<float*>(name##_room.data())
#else
#define SKETCHKV_FN
#define SKETCHKV_INLINE_FN [[gnu::always_inline]] inline
#define SKETCHKV_TABLE constexpr
#define SKETCHKV_UNROLL
// float name[most][16], of which `used` rows are.
#define SKETCHKV_LANE_ROWS(name, most, used) \
  static_cast<void>(used);                   \
  alignas(64) float name[16 * (most)]
#endif
