#pragma once

#include "kernels/cuda/query.cuh"

namespace sketchkv::cuda {

// What a word's bits stand for, as signed bytes. Signs and two bits: bit b times 2^(b % 4), of bit
// 8 j + r in byte j of register r (r < 4; the rest after a shift). Three bits: the levels of the
// codes of nibbles 4 r + j in byte j of registers 0 and 1; the highest bits of nibbles 2 j and
// 2 j + 1, times 8, in those of 2 and 3.
template <KeyKind kKeys>
__device__ inline void UnpackWord(uint32_t word, uint32_t* registers) {
  if constexpr (kKeys == KeyKind::kThreeBits) {
    const uint32_t codes = word & 0x77777777u;
    registers[0] = __byte_perm(kThreeBitLow, kThreeBitHigh, codes);
    registers[1] = __byte_perm(kThreeBitLow, kThreeBitHigh, codes >> 16);
    registers[2] = word & 0x08080808u;
    registers[3] = word >> 4 & 0x08080808u;
  } else {
    const uint32_t upper = word >> 4;
#pragma unroll
    for (uint32_t p = 0; p < 4; ++p) {
      registers[p] = word & 0x01010101u << p;
      registers[4 + p] = upper & 0x01010101u << p;
    }
  }
}

// scores[t] of query g and token t of tile c, over the token's scale.
template <typename Shape, KeyKind kKeys>
__device__ inline void ScoreStep(const QueryOperands<kKeys>& query, uint32_t stage, uint32_t lane,
                                 float (&scores)[16]) {
  using Operands = QueryOperands<kKeys>;
  const uint32_t g = lane / 4, c = lane % 4;
  // For the products g stands for tokens: of tile g / 2 those of its even or odd quarters.
#pragma unroll
  for (uint32_t h = 0; h < 2; ++h) {
    uint32_t words[Operands::kWordsOfLane][4];
#pragma unroll
    for (uint32_t s = 0; s < Operands::kWordsOfLane; ++s) {
      const uint4 x = LoadShared(stage + Shape::Planes(g / 2, (c + 4 * s) * 4 + 2 * h + (g & 1)));
      words[s][0] = x.x, words[s][1] = x.y, words[s][2] = x.z, words[s][3] = x.w;
    }
#pragma unroll
    for (uint32_t r = 0; r < 4; ++r) {
      int32_t sums[4] = {};
#pragma unroll
      for (uint32_t s = 0; s < Operands::kWordsOfLane; ++s) {
        uint32_t b[2 * Operands::kProducts];
        UnpackWord<kKeys>(words[s][r], b);
#pragma unroll
        for (uint32_t i = 0; i < Operands::kProducts; ++i) {
          MultiplyBytes(sums, query.a[s][i], b[2 * i], b[2 * i + 1]);
        }
      }
      const auto score = [&](int32_t upper, int32_t lower) {
        return fmaf(static_cast<float>(upper * 128 + lower), query.step, query.base);
      };
      scores[8 * h + r] = score(sums[0], sums[2]);
      scores[8 * h + 4 + r] = score(sums[1], sums[3]);
    }
  }
}

}  // namespace sketchkv::cuda
