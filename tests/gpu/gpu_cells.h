#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "kernels/cuda/plan.h"
#include "tests/gpu/device_array.h"
#include "tests/kernels/codec_testing.h"

namespace sketchkv::testing {

// Chains of blocks on the GPU, as the CPU's codec encoded them, in slots in another order and with
// garbage between them; and the same decoded.
class GpuChains {
 public:
  struct Chain {
    uint32_t num_tokens;
    uint32_t first_block;        // in slots()
    std::vector<Matrix> keys;    // of each kv head: [num_tokens][128], decoded
    std::vector<Matrix> values;  // likewise
  };

  GpuChains(const CodecProfile& profile, uint32_t num_kv_heads, uint32_t block_tokens,
            const std::vector<uint32_t>& tokens, double magnitude = 1.0);

  [[nodiscard]] const std::vector<Chain>& chains() const { return chains_; }
  // Of a launch over the last tokens of each chain, from `begin` on.
  [[nodiscard]] cuda::ChainArgs Args(uint32_t begin, const cuda::ThreadBlocks& most) const;
  [[nodiscard]] const cuda::CellPlan& plan() const { return plan_; }
  [[nodiscard]] uint32_t num_kv_heads() const { return num_kv_heads_; }

 private:
  uint32_t num_kv_heads_;
  std::unique_ptr<BlockCodec> codec_;
  cuda::CellPlan plan_;
  std::vector<Chain> chains_;
  std::unique_ptr<DeviceArray<uint8_t>> memory_;
  std::unique_ptr<DeviceArray<const uint8_t*>> slots_;
};

}  // namespace sketchkv::testing
