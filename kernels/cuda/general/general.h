#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/cpu/cpu_codec.h"
#include "kernels/cuda/general/args.h"
#include "kernels/layout.h"
#include "kernels/profile.h"
#include "kernels/tables.h"

// The general path: what the tuned kernels (kernels/cuda/launch.h) do not take. The only header of
// this folder that others include.
namespace sketchkv::cuda {

// One layer's cells as the kernels see them: a plan, and constants that stand in their memory.
// Immutable and thread-safe.
class GeneralLayer {
 public:
  // `layout` and `profile` are valid and fit each other. `tables`: of each kv head, which outlive
  // this object; none where the profile uses no tables.
  GeneralLayer(const KvLayout& layout, const CodecProfile& profile,
               std::vector<const HeadTable*> tables);

  [[nodiscard]] size_t constant_bytes() const { return constant_bytes_; }
  // The constants as they must stand at `address` of the kernels' memory, a multiple of 64.
  [[nodiscard]] std::vector<std::byte> Constants(const void* address) const;
  // Of launches once they do.
  [[nodiscard]] GeneralPlan Plan(const void* address) const;

 private:
  KvLayout layout_;
  CodecProfile profile_;
  std::vector<const HeadTable*> tables_;  // [heads]; one null if the profile uses none
  SharedProjections projections_;
  std::vector<float> columns_;  // second sketch
  std::vector<float> key_fp8_, value_fp8_;
  GeneralPlan plan_;  // but for its heads
  size_t constant_bytes_ = 0;
};

// Numbers of float that a launch over `chain` wants of its caller.
[[nodiscard]] size_t PreparedFloats(const GeneralPlan& plan, const ChainArgs& chain,
                                    uint32_t num_queries);
[[nodiscard]] size_t PartialFloats(const GeneralPlan& plan, const ChainArgs& chain,
                                   uint32_t num_queries);
[[nodiscard]] size_t TurnedFloats(const GeneralPlan& plan, const ChainArgs& chain,
                                  uint32_t num_queries);

}  // namespace sketchkv::cuda
