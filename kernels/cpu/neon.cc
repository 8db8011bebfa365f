// Kernels for 64-bit Arm, whose baseline has these instructions: four registers hold the sixteen
// lanes. Everything is in an unnamed namespace, as in the other files of its kind.
#include <arm_neon.h>

#include <cstddef>
#include <cstdint>

#include "kernels/cpu/kernel_table.h"

namespace sketchkv {
namespace {

// What registers hold: rows of a Walsh-Hadamard transform, and sums over a dense one.
constexpr uint32_t kWalshRows = 4, kDenseRows = 4;

struct F {
  float32x4_t v[4];  // lanes 4 i to 4 i + 3
};
struct U {
  uint32x4_t v[4];
};

// op on each register of x... .
template <typename Result, typename Op, typename... X>
[[gnu::always_inline]] inline Result Each(const Op& op, const X&... x) {
  return {{op(x.v[0]...), op(x.v[1]...), op(x.v[2]...), op(x.v[3]...)}};
}

uint8x16_t Bytes(uint32x4_t x) { return vreinterpretq_u8_u32(x); }
uint32x4_t Words(uint8x16_t x) { return vreinterpretq_u32_u8(x); }

// As bytes: no pointer is aligned.
U LoadU(const void* p) {
  const auto* x = static_cast<const uint8_t*>(p);
  return {{Words(vld1q_u8(x)), Words(vld1q_u8(x + 16)), Words(vld1q_u8(x + 32)),
           Words(vld1q_u8(x + 48))}};
}
void StoreU(void* p, U x) {
  for (int i = 0; i < 4; ++i) vst1q_u8(static_cast<uint8_t*>(p) + 16 * i, Bytes(x.v[i]));
}
F AsF(U x) {
  return Each<F>([](uint32x4_t a) { return vreinterpretq_f32_u32(a); }, x);
}
U AsU(F x) {
  return Each<U>([](float32x4_t a) { return vreinterpretq_u32_f32(a); }, x);
}
F Load(const void* p) { return AsF(LoadU(p)); }
void Store(void* p, F x) { StoreU(p, AsU(x)); }

F Set(float x) {
  const float32x4_t four = vdupq_n_f32(x);
  return {{four, four, four, four}};
}
U SetU(uint32_t x) {
  const uint32x4_t four = vdupq_n_u32(x);
  return {{four, four, four, four}};
}

F Add(F x, F y) {
  return Each<F>([](float32x4_t a, float32x4_t b) { return vaddq_f32(a, b); }, x, y);
}
F Sub(F x, F y) {
  return Each<F>([](float32x4_t a, float32x4_t b) { return vsubq_f32(a, b); }, x, y);
}
F Mul(F x, F y) {
  return Each<F>([](float32x4_t a, float32x4_t b) { return vmulq_f32(a, b); }, x, y);
}
F Div(F x, F y) {
  return Each<F>([](float32x4_t a, float32x4_t b) { return vdivq_f32(a, b); }, x, y);
}
F Sqrt(F x) {
  return Each<F>([](float32x4_t a) { return vsqrtq_f32(a); }, x);
}
U Greater(F x, F y) {
  return Each<U>([](float32x4_t a, float32x4_t b) { return vcgtq_f32(a, b); }, x, y);
}
F Select(U mask, F x, F y) {
  return Each<F>([](uint32x4_t m, float32x4_t a, float32x4_t b) { return vbslq_f32(m, a, b); },
                 mask, x, y);
}
// The second operand when equal or unordered, which the instructions of that name do not give.
F Max(F x, F y) { return Select(Greater(x, y), x, y); }
F Min(F x, F y) { return Select(Greater(y, x), x, y); }

U And(U x, U y) {
  return Each<U>([](uint32x4_t a, uint32x4_t b) { return vandq_u32(a, b); }, x, y);
}
U Or(U x, U y) {
  return Each<U>([](uint32x4_t a, uint32x4_t b) { return vorrq_u32(a, b); }, x, y);
}
U Xor(U x, U y) {
  return Each<U>([](uint32x4_t a, uint32x4_t b) { return veorq_u32(a, b); }, x, y);
}
U AddU(U x, U y) {
  return Each<U>([](uint32x4_t a, uint32x4_t b) { return vaddq_u32(a, b); }, x, y);
}
U MaxU(U x, U y) {
  return Each<U>([](uint32x4_t a, uint32x4_t b) { return vmaxq_u32(a, b); }, x, y);
}
// x + step where a > b.
U AddWhereGreater(U x, F a, F b, uint32_t step) { return AddU(x, And(Greater(a, b), SetU(step))); }
// x where a > b, else 0.
F KeepWhereGreater(F a, F b, F x) { return AsF(And(Greater(a, b), AsU(x))); }

template <int kBits>
U ShiftLeft(U x) {
  return Each<U>([](uint32x4_t a) { return vshlq_n_u32(a, kBits); }, x);
}
template <int kBits>
U ShiftRight(U x) {
  return Each<U>([](uint32x4_t a) { return vshrq_n_u32(a, kBits); }, x);
}
U ShiftLeftBy(U x, U counts) {
  return Each<U>([](uint32x4_t a, uint32x4_t n) { return vshlq_u32(a, vreinterpretq_s32_u32(n)); },
                 x, counts);
}
U ShiftRightBy(U x, U counts) {
  return Each<U>(
      [](uint32x4_t a, uint32x4_t n) { return vshlq_u32(a, vnegq_s32(vreinterpretq_s32_u32(n))); },
      x, counts);
}

F FromInt(U x) {
  return Each<F>([](uint32x4_t a) { return vcvtq_f32_s32(vreinterpretq_s32_u32(a)); }, x);
}
U ToInt(F x) {
  return Each<U>([](float32x4_t a) { return vreinterpretq_u32_s32(vcvtq_s32_f32(a)); }, x);
}

U Widen(uint16x8_t low, uint16x8_t high) {
  return {{vmovl_u16(vget_low_u16(low)), vmovl_high_u16(low), vmovl_u16(vget_low_u16(high)),
           vmovl_high_u16(high)}};
}
U WidenSigned(int16x8_t low, int16x8_t high) {
  return {{vreinterpretq_u32_s32(vmovl_s16(vget_low_s16(low))),
           vreinterpretq_u32_s32(vmovl_high_s16(low)),
           vreinterpretq_u32_s32(vmovl_s16(vget_low_s16(high))),
           vreinterpretq_u32_s32(vmovl_high_s16(high))}};
}
U LoadU8(const void* p) {
  const uint8x16_t x = vld1q_u8(static_cast<const uint8_t*>(p));
  return Widen(vmovl_u8(vget_low_u8(x)), vmovl_high_u8(x));
}
U LoadI8(const void* p) {
  const int8x16_t x = vreinterpretq_s8_u8(vld1q_u8(static_cast<const uint8_t*>(p)));
  return WidenSigned(vmovl_s8(vget_low_s8(x)), vmovl_high_s8(x));
}
U LoadU16(const void* p) {
  const auto* x = static_cast<const uint8_t*>(p);
  return Widen(vreinterpretq_u16_u8(vld1q_u8(x)), vreinterpretq_u16_u8(vld1q_u8(x + 16)));
}
U LoadI16(const void* p) {
  const auto* x = static_cast<const uint8_t*>(p);
  return WidenSigned(vreinterpretq_s16_u8(vld1q_u8(x)), vreinterpretq_s16_u8(vld1q_u8(x + 16)));
}
uint16x8_t Narrow(uint32x4_t low, uint32x4_t high) { return vmovn_high_u32(vmovn_u32(low), high); }
void StoreU16(void* p, U x) {
  auto* out = static_cast<uint8_t*>(p);
  vst1q_u8(out, vreinterpretq_u8_u16(Narrow(x.v[0], x.v[1])));
  vst1q_u8(out + 16, vreinterpretq_u8_u16(Narrow(x.v[2], x.v[3])));
}
void StoreU8(void* p, U x) {
  const uint8x8_t low = vmovn_u16(Narrow(x.v[0], x.v[1]));
  vst1q_u8(static_cast<uint8_t*>(p), vmovn_high_u16(low, Narrow(x.v[2], x.v[3])));
}

F LoadHalf(const void* p) {
  const auto four = [p](int i) {
    const uint8x8_t x = vld1_u8(static_cast<const uint8_t*>(p) + 8 * i);
    return vcvt_f32_f16(vreinterpret_f16_u8(x));
  };
  return {{four(0), four(1), four(2), four(3)}};
}
void StoreHalf(void* p, F x) {
  for (int i = 0; i < 4; ++i) {
    vst1_u8(static_cast<uint8_t*>(p) + 8 * i, vreinterpret_u8_f16(vcvt_f16_f32(x.v[i])));
  }
}

// 64 bytes that are looked up by byte.
using ByteTable = uint8x16x4_t;
ByteTable LoadByteTable(const uint8_t* table) { return vld1q_u8_x4(table); }

// Sixteen floats.
using FloatTable = ByteTable;
FloatTable LoadFloatTable(const float* table) {
  return LoadByteTable(reinterpret_cast<const uint8_t*>(table));
}
// Of a table that repeats after 2^kBits: by the low four bits of each lane, or fewer.
template <int kBits>
F LookUp(const FloatTable& table, U index) {
  const auto four = [&table](uint32x4_t i) {
    // The places of a float's four bytes.
    constexpr uint32_t kMask = kBits <= 2 ? 3 : 15;
    const uint32x4_t first = vmulq_n_u32(vandq_u32(i, vdupq_n_u32(kMask)), 0x04040404u);
    const uint8x16_t at = Bytes(vaddq_u32(first, vdupq_n_u32(0x03020100u)));
    const uint8x16_t x = kBits <= 2 ? vqtbl1q_u8(table.val[0], at) : vqtbl4q_u8(table, at);
    return vreinterpretq_f32_u8(x);
  };
  return Each<F>(four, index);
}

// Each uses what stands before it.
// clang-format off
#include "kernels/cpu/bytes_neon.inc"
#include "kernels/cpu/transpose_neon.inc"
#include "kernels/cpu/sum_entries_neon.inc"
#include "kernels/cpu/kernels.inc"
// clang-format on

}  // namespace

extern const KernelTable kNeonKernels;
const KernelTable kNeonKernels = MakeTable("neon");

}  // namespace sketchkv
