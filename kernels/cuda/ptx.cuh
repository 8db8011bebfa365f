#pragma once

#include <cuda_fp16.h>

#include <cstdint>

// The instructions that CUDA C++ has no name for, and how large a thread block is.
namespace sketchkv::cuda {

constexpr uint32_t kThreads = 128;
constexpr uint32_t kWarps = kThreads / 32;

__device__ inline uint32_t SharedAddress(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// Sixteen bytes to shared memory, zeros unless `present`; past the first cache. The second one
// fetches kFetched bytes, aligned, around them.
template <uint32_t kFetched = 128>
__device__ inline void CopyAsync(uint32_t shared, const uint8_t* global, bool present) {
  static_assert(kFetched == 64 || kFetched == 128);
  if constexpr (kFetched == 64) {
    asm volatile("cp.async.cg.shared.global.L2::64B [%0], [%1], 16, %2;\n" ::"r"(shared),
                 "l"(global), "r"(present ? 16 : 0));
  } else {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;\n" ::"r"(shared),
                 "l"(global), "r"(present ? 16 : 0));
  }
}
__device__ inline void CommitCopies() { asm volatile("cp.async.commit_group;\n" ::); }
// Until at most kLeft of the latest groups are under way.
template <int kLeft>
__device__ inline void WaitForCopies() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(kLeft) : "memory");
}

__device__ inline uint4 LoadShared(uint32_t shared) {
  uint4 x;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
               : "r"(shared)
               : "memory");
  return x;
}

__device__ inline uint2 LoadSharedPair(uint32_t shared) {
  uint2 x;
  asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];\n"
               : "=r"(x.x), "=r"(x.y)
               : "r"(shared)
               : "memory");
  return x;
}

__device__ inline void StoreShared(uint32_t shared, uint4 x) {
  asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};\n" ::"r"(shared), "r"(x.x), "r"(x.y),
               "r"(x.z), "r"(x.w)
               : "memory");
}

__device__ inline void StoreShared(uint32_t shared, uint2 x) {
  asm volatile("st.shared.v2.u32 [%0], {%1, %2};\n" ::"r"(shared), "r"(x.x), "r"(x.y) : "memory");
}

// Nothing waits for it.
__device__ inline void AddShared(uint32_t shared, uint32_t x) {
  asm volatile("red.shared.add.u32 [%0], %1;\n" ::"r"(shared), "r"(x) : "memory");
}

// Sets bits if `condition`, in one instruction. In the order written, since a predicate that waits
// is one of seven.
__device__ inline void SetIf(bool condition, uint32_t bits, uint32_t* word) {
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "setp.ne.u32 p, %1, 0;\n"
      "@p or.b32 %0, %0, %2;\n"
      "}\n"
      : "+r"(*word)
      : "r"(static_cast<uint32_t>(condition)), "r"(bits));
}

// d += a * b, 16 x 32 by 32 x 8. With g = lane / 4 and c = lane % 4, a: rows g and g + 8 of columns
// 4c..4c+3, then of columns 16 + 4c..; b: rows 4c.. and 16 + 4c.. of column g; d: columns 2c and
// 2c + 1 of row g, then of row g + 8.
__device__ inline void MultiplyBytes(int32_t (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                     uint32_t b1) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};\n"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// The same of halves, 16 x 16 by 16 x 8: a: rows g and g + 8 of columns 2c, 2c + 1, then of columns
// 8 + 2c..; b: rows 2c.. and 8 + 2c.. of column g.
__device__ inline void MultiplyHalves(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2,
                                      uint32_t a3, uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// A kernel launched by LaunchEarly begins before the one before it in the stream has ended; what
// that one wrote is there after this.
__device__ inline void WaitForLaunchBefore() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;\n" ::: "memory");
#endif
}
// Lets the next one begin, if it may, once all thread blocks have come here.
__device__ inline void AllowNextLaunch() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;\n" ::: "memory");
#endif
}

// Two floats as halves, the first in the lower bits.
__device__ inline uint32_t Halves(float first, float second) {
  const __half2 x = __floats2half2_rn(first, second);
  return *reinterpret_cast<const uint32_t*>(&x);
}

// 2^(127 - exponent) and 2^(exponent - 127), of an exponent as floats have it.
__device__ inline float PowerOfTwoDown(uint32_t exponent) {
  return exponent < 254 ? __uint_as_float((254 - exponent) << 23) : 0x1p-127f;
}
__device__ inline float PowerOfTwoUp(uint32_t exponent) {
  return exponent > 0 ? __uint_as_float(exponent << 23) : 0x1p-127f;
}

// 2^x.
__device__ inline float Exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x));
  return y;
}

// tanh(x) within 1e-6.
__device__ inline float Tanh(float x) {
  constexpr float kTwoLog2E = 2.88539008177793f;
  return 1.0f - __fdividef(2.0f, 1.0f + Exp2(fminf(kTwoLog2E * x, 64.0f)));
}

// Adds for the whole card to see. What the thread, or before a barrier its thread block, wrote is
// seen by those who see the sum; and the other way round.
__device__ inline uint32_t AddInOrder(uint32_t* counter, uint32_t x) {
  uint32_t before;
  asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], %2;\n"
               : "=r"(before)
               : "l"(counter), "r"(x)
               : "memory");
  return before;
}

}  // namespace sketchkv::cuda
