#pragma once

#include <cuda_fp16.h>

#include "kernels/cuda/general/args.h"

// Sixteen lanes as sixteen threads, half a warp: what the bodies in kernels/cpu are written
// against. A pointer to sixteen numbers is the same in all of them; each takes its own.
namespace sketchkv::cuda {
namespace {

// Of a thread block: a warp.
constexpr uint32_t kMostWorkers = 2;
constexpr uint32_t kGeneralThreads = kMostWorkers * kLanes;
// What registers hold: rows of a Walsh-Hadamard transform, and sums over a dense one.
constexpr uint32_t kWalshRows = 16, kDenseRows = 8;

using F = float;
using U = uint32_t;

__device__ inline uint32_t Lane() { return threadIdx.x % kLanes; }
__device__ inline uint32_t LaneMask() { return 0xFFFFu << (threadIdx.x & 16); }
// What lanes have stored is there for the others.
__device__ inline void SyncLanes() { __syncwarp(LaneMask()); }

// The worker's scratch memory: a stack, of which every thread knows the top.
class LaneRoom {
 public:
  __device__ static void Start(uint8_t* data, size_t bytes) { Own() = {data, data + bytes}; }

  __device__ explicit LaneRoom(size_t bytes) : data_(Own().top) {
    uint8_t* const top = data_ + (bytes + 63) / 64 * 64;
    if (top > Own().end) __trap();
    Own().top = top;
  }
  __device__ ~LaneRoom() { Own().top = data_; }
  LaneRoom(const LaneRoom&) = delete;
  LaneRoom& operator=(const LaneRoom&) = delete;
  __device__ uint8_t* data() const { return data_; }

 private:
  struct Stack {
    uint8_t* top;
    uint8_t* end;
  };
  __device__ static Stack& Own() {
    __shared__ Stack stacks[kGeneralThreads];
    return stacks[threadIdx.x];
  }

  uint8_t* const data_;
};

__device__ inline F Load(const void* p) { return static_cast<const float*>(p)[Lane()]; }
__device__ inline U LoadU(const void* p) { return static_cast<const uint32_t*>(p)[Lane()]; }
__device__ inline void Store(void* p, F a) { static_cast<float*>(p)[Lane()] = a; }
__device__ inline void StoreU(void* p, U a) { static_cast<uint32_t*>(p)[Lane()] = a; }
__device__ inline F Set(float x) { return x; }
__device__ inline U SetU(uint32_t x) { return x; }

// Never fused.
__device__ inline F Add(F a, F b) { return __fadd_rn(a, b); }
__device__ inline F Sub(F a, F b) { return __fsub_rn(a, b); }
__device__ inline F Mul(F a, F b) { return __fmul_rn(a, b); }
__device__ inline F Div(F a, F b) { return __fdiv_rn(a, b); }
__device__ inline F Sqrt(F a) { return __fsqrt_rn(a); }
// The second operand when equal or unordered.
__device__ inline F Max(F a, F b) { return a > b ? a : b; }
__device__ inline F Min(F a, F b) { return a < b ? a : b; }
__device__ inline U Greater(F a, F b) { return a > b ? 0xFFFFFFFFu : 0u; }
__device__ inline U AddWhereGreater(U x, F a, F b, uint32_t step) {
  return x + (a > b ? step : 0u);
}
__device__ inline F KeepWhereGreater(F a, F b, F x) { return a > b ? x : 0.0f; }

__device__ inline U And(U a, U b) { return a & b; }
__device__ inline U Or(U a, U b) { return a | b; }
__device__ inline U Xor(U a, U b) { return a ^ b; }
__device__ inline U AddU(U a, U b) { return a + b; }
__device__ inline U MaxU(U a, U b) { return max(a, b); }
__device__ inline U LessU(U a, U b) { return a < b ? 0xFFFFFFFFu : 0u; }
__device__ inline U MulAddU(U a, uint32_t by, uint32_t add) { return a * by + add; }
template <int kBits>
__device__ inline U ShiftLeft(U a) {
  return a << kBits;
}
template <int kBits>
__device__ inline U ShiftRight(U a) {
  return a >> kBits;
}
__device__ inline U ShiftLeftBy(U a, U counts) { return a << counts; }
__device__ inline U ShiftRightBy(U a, U counts) { return a >> counts; }

__device__ inline F AsF(U a) { return __uint_as_float(a); }
__device__ inline U AsU(F a) { return __float_as_uint(a); }
__device__ inline float FloatOf(uint32_t bits) { return __uint_as_float(bits); }
__device__ inline F FromInt(U a) { return __int2float_rn(static_cast<int32_t>(a)); }
__device__ inline U ToInt(F a) { return static_cast<uint32_t>(__float2int_rz(a)); }
__device__ inline F Select(U mask, F a, F b) { return mask != 0 ? a : b; }
__device__ inline U SelectU(U mask, U a, U b) { return mask != 0 ? a : b; }

template <typename T>
__device__ T At(const void* p) {
  return static_cast<const T*>(p)[Lane()];
}
__device__ inline U LoadI8(const void* p) { return static_cast<uint32_t>(int32_t{At<int8_t>(p)}); }
__device__ inline U LoadI16(const void* p) {
  return static_cast<uint32_t>(int32_t{At<int16_t>(p)});
}
__device__ inline U LoadU8(const void* p) { return At<uint8_t>(p); }
__device__ inline U LoadU16(const void* p) { return At<uint16_t>(p); }
__device__ inline void StoreU8(void* p, U a) {
  static_cast<uint8_t*>(p)[Lane()] = static_cast<uint8_t>(a);
}
__device__ inline void StoreU16(void* p, U a) {
  static_cast<uint16_t*>(p)[Lane()] = static_cast<uint16_t>(a);
}

using FloatTable = const float*;
__device__ inline FloatTable LoadFloatTable(const float* table) { return table; }
template <int kBits>
__device__ F LookUp(FloatTable table, U index) {
  return table[index & 15];
}

// Bytes of a lane: min(x, 63), lookups of 64 bytes, sums of products.
struct ByteTable {
  const uint8_t* bytes;
};
using ByteIndex = U;
__device__ inline ByteTable LoadByteTable(const uint8_t* table) { return {table}; }
__device__ inline ByteIndex IndexOf(U x) { return __vminu4(x, 0x3F3F3F3Fu); }
__device__ inline U LookUpBytes(ByteTable table, ByteIndex index) {
  U bytes = 0;
#pragma unroll
  for (uint32_t i = 0; i < 4; ++i) bytes |= uint32_t{table.bytes[index >> 8 * i & 63]} << 8 * i;
  return bytes;
}
__device__ inline U DotBytes(U sum, U a, U b) { return __dp4a(a, b, sum); }

// From lane to lane.
__device__ inline U LaneIndex() { return Lane(); }
__device__ inline U LanesBelow(uint32_t count) { return Lane() < count ? 0xFFFFFFFFu : 0u; }
// The tree of the CPU's SumLanes: its lower half takes the upper.
__device__ inline float SumLanes(F x) {
#pragma unroll
  for (uint32_t h = 8; h > 0; h /= 2) x = __fadd_rn(x, __shfl_xor_sync(LaneMask(), x, h));
  return x;
}
__device__ inline float MaxLanes(F x) {
#pragma unroll
  for (uint32_t h = 8; h > 0; h /= 2) x = Max(x, __shfl_xor_sync(LaneMask(), x, h));
  return x;
}
__device__ inline uint32_t LargestLane(U x) {
#pragma unroll
  for (uint32_t h = 8; h > 0; h /= 2) x = max(x, __shfl_xor_sync(LaneMask(), x, h));
  return x;
}
__device__ inline uint32_t LargestOf(const uint32_t* lanes) { return LargestLane(LoadU(lanes)); }
// Where all lanes are equal.
__device__ inline float FirstLane(F x) { return x; }
__device__ inline uint32_t FirstLane(U x) { return x; }
__device__ inline float LogOf(float x) { return logf(x); }
__device__ inline void MaxInto(uint32_t* kept, uint32_t x) {
  if (Lane() == 0) atomicMax(kept, x);
}

// Rows of a 4 x 4 transpose, in each quarter of the lanes.
__device__ inline void Transpose4(U* x) {
#pragma unroll
  for (uint32_t h = 2; h > 0; h /= 2) {
    const bool upper = (Lane() & h) != 0;
#pragma unroll
    for (uint32_t i = 0; i < 4; ++i) {
      if ((i & h) != 0) continue;
      const U got = __shfl_xor_sync(LaneMask(), upper ? x[i] : x[i + h], h);
      (upper ? x[i] : x[i + h]) = got;
    }
  }
}

// Of rows row(0) to row(15); out(i, x) takes column i.
template <typename Row, typename Out>
__device__ void TransposeRows(const Row& row, const Out& out) {
  F x[kLanes];
#pragma unroll
  for (uint32_t i = 0; i < kLanes; ++i) x[i] = row(i);
#pragma unroll
  for (uint32_t h = 8; h > 0; h /= 2) {
    const bool upper = (Lane() & h) != 0;
#pragma unroll
    for (uint32_t i = 0; i < kLanes; ++i) {
      if ((i & h) != 0) continue;
      const F got = __shfl_xor_sync(LaneMask(), upper ? x[i] : x[i + h], h);
      if (upper) {
        x[i] = got;
      } else {
        x[i + h] = got;
      }
    }
  }
#pragma unroll
  for (uint32_t i = 0; i < kLanes; ++i) out(i, x[i]);
}

// Codes of a run of channels while they are packed or unpacked, a byte each.
struct CodeBytes {
  __device__ explicit CodeBytes(uint32_t channels)
      : room(size_t{16} * ((channels + kLanes - 1) / kLanes * kLanes)), bytes(room.data()) {
    SyncLanes();  // others' floats were here, and will be
  }
  __device__ ~CodeBytes() { SyncLanes(); }

  LaneRoom room;
  uint8_t* const bytes;
};

}  // namespace
}  // namespace sketchkv::cuda
