#pragma once

#include "kernels/cuda/out_rows.cuh"

// Keys of 256 signs to rows: sums of -1 and 1, exact in whatever order, so that they are products
// of matrices of bytes: bits of keys [16 tokens][256] times 2 S [256][128], less the sums of S.
// Of lane l, g = l / 4 and c = l % 4.
namespace sketchkv::cuda {

// S as the products want it: for channels 32 a and on, word w of a key and pair p of products the
// second operands of products 2 p and 2 p + 1. Byte j of their registers 0 and 1 is of bits
// 8 j + c and 8 j + 4 + c of the word; column n of product j is channel 32 a + 8 (n / 2) + 2 j +
// n % 2, so that a lane has eight channels in a row of the results.
struct SignMatrix {
  uint4 operands[4][8][2][32];

  // By the whole thread block.
  __device__ void Make(const CellPlan& plan) {
    constexpr uint32_t kNegative = 0xFCFCFCFCu;  // 2 to -2, byte by byte
    const uint32_t lane = threadIdx.x % 32, g = lane / 4, c = lane % 4;
    for (uint32_t i = threadIdx.x / 32; i < 4 * 8 * 2; i += kWarps) {
      const uint32_t a = i / 16, word = i / 2 % 8, pair = i % 2;
      uint32_t registers[4];
#pragma unroll
      for (uint32_t r = 0; r < 4; ++r) {
        const uint32_t channel = 32 * a + 8 * (g / 2) + 2 * (2 * pair + r / 2) + g % 2;
        // Row 32 (word % 4) + 8 j + 4 (r % 2) + c of the transform; its sign in this channel is
        // the parity of the bits that both have.
        const uint32_t row = 32 * (word % 4) + 4 * (r % 2) + c;
        const uint32_t sign = plan.key_signs[word / 4][channel / 32] >> channel % 32;
        const uint32_t odd = (__popc(row & channel) + sign) & 1;
        uint32_t bytes = 0x02020202u ^ (odd != 0 ? kNegative : 0);
        if ((channel & 8) != 0) bytes ^= kNegative & 0xFF00FF00u;
        if ((channel & 16) != 0) bytes ^= kNegative & 0xFFFF0000u;
        registers[r] = bytes;
      }
      operands[a][word][pair][lane] = {registers[0], registers[1], registers[2], registers[3]};
    }
    __syncthreads();
  }
};

// A tile whose keys are decoded; no cell behind the last one.
struct SignTile {
  const uint32_t* planes = nullptr;
  const uint8_t* scales;
  uint8_t* rows;      // of its first token
  uint32_t left = 0;  // tokens
};

__device__ inline SignTile FindSignTile(const CellPlan& plan, const DecodeArgs& args,
                                        uint32_t number) {
  SignTile t;
  const uint32_t index = number >> plan.block_tiles_log2;
  if (index >= args.num_cells) return t;
  const CellRows cell = args.cells[index];
  const uint32_t tile = number & ((1u << plan.block_tiles_log2) - 1);
  if (cell.keys == nullptr || tile * kTileTokens >= cell.num_tokens) return t;
  const uint32_t scale_rows = plan.value_kind == ValueKind::kRotated ? 2 : 1;
  t.planes = reinterpret_cast<const uint32_t*>(cell.cell + plan.planes) + tile * 8 * kTileTokens;
  t.scales = cell.cell + plan.scales + tile * scale_rows * kTileTokens * 2;
  t.rows = cell.keys + tile * kTileTokens * args.key_stride;
  t.left = cell.num_tokens - tile * kTileTokens;
  return t;
}

// A tile's bits as first operands: tokens g and g + 8.
struct SignBits {
  uint32_t operands[8][4];

  __device__ explicit SignBits(const SignTile& tile) {
    const uint32_t g = threadIdx.x % 32 / 4, c = threadIdx.x % 4;
#pragma unroll
    for (uint32_t word = 0; word < 8; ++word) {
#pragma unroll
      for (uint32_t i = 0; i < 2; ++i) {
        uint32_t bits = 0;
        if (tile.planes != nullptr) bits = __ldg(tile.planes + word * kTileTokens + g + 8 * i);
        operands[word][i] = bits >> c & 0x01010101u;
        operands[word][2 + i] = bits >> (4 + c) & 0x01010101u;
      }
    }
  }
};

// Keys of two tiles.
template <RowType kType>
__device__ inline void DecodeSigns(const CellPlan& plan, const DecodeArgs& args,
                                   const SignMatrix& matrix, uint32_t pair) {
  const uint32_t lane = threadIdx.x % 32, g = lane / 4, c = lane % 4;
  const SignTile tiles[2] = {FindSignTile(plan, args, 2 * pair),
                             FindSignTile(plan, args, 2 * pair + 1)};
  if (tiles[0].left + tiles[1].left == 0) return;
  float scales[2][2] = {};  // of tokens g and g + 8
#pragma unroll
  for (uint32_t i = 0; i < 4; ++i) {
    const SignTile& tile = tiles[i / 2];
    if (tile.left > 0) scales[i / 2][i % 2] = StoredScale(tile.scales + 2 * g + i % 2 * 16);
  }
  const SignBits bits[2] = {SignBits(tiles[0]), SignBits(tiles[1])};
#pragma unroll 1
  for (uint32_t a = 0; a < 4; ++a) {
    // Sums more kRounderBits are the bits of floats more kRounder. Less the sums of S, which are 0
    // but for channel 0.
    int32_t sums[2][4][4];
#pragma unroll
    for (uint32_t i = 0; i < 32; ++i) sums[i / 16][i / 4 % 4][i % 4] = kRounderBits;
    if (a == 0 && c == 0) {
      const int32_t of_zero =
          (plan.key_signs[0][0] & 1 ? -128 : 128) + (plan.key_signs[1][0] & 1 ? -128 : 128);
#pragma unroll
      for (uint32_t i = 0; i < 4; ++i) sums[i / 2][0][i % 2 * 2] -= of_zero;
    }
#pragma unroll
    for (uint32_t word = 0; word < 8; ++word) {
#pragma unroll
      for (uint32_t p = 0; p < 2; ++p) {
        const uint4 b = matrix.operands[a][word][p][lane];
#pragma unroll
        for (uint32_t t = 0; t < 2; ++t) {
          MultiplyBytes(sums[t][2 * p], bits[t].operands[word], b.x, b.y);
          MultiplyBytes(sums[t][2 * p + 1], bits[t].operands[word], b.z, b.w);
        }
      }
    }
#pragma unroll
    for (uint32_t i = 0; i < 4; ++i) {
      const uint32_t t = i / 2, half = i % 2, token = g + 8 * half;
      float x[8];
#pragma unroll
      for (uint32_t j = 0; j < 8; ++j) {
        const float sum = __int_as_float(sums[t][j / 2][2 * half + j % 2]) - kRounder;
        x[j] = sum * scales[t][half] + 0.0f;
      }
      if (token >= tiles[t].left) continue;
      auto* const out = reinterpret_cast<uint4*>(tiles[t].rows + token * args.key_stride +
                                                 (32 * a + 8 * c) * BytesOf(kType));
      PackEight<kType>(x, [&](uint32_t chunk, uint4 packed) { out[chunk] = packed; });
    }
  }
}

}  // namespace sketchkv::cuda
