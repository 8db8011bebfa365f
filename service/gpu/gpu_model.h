#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "kernels/base/mutex.h"
#include "service/engine/model_registry.h"
#include "service/gpu/gpu_layer.h"

namespace sketchkv::gpu {

// How the kernels see the layers of a model. Immutable.
class GpuModel {
 public:
  // Null when the card has no memory left for what they need.
  [[nodiscard]] static std::shared_ptr<const GpuModel> Create(const Model& model);

  [[nodiscard]] const GpuLayer& layer(uint32_t layer) const { return *layers_[layer]; }
  // Whose kernels encode and decode the cells of this layer: layers of equal profiles without
  // tables share the first of them, so that a block's cells go in few launches.
  [[nodiscard]] const GpuLayer& coder(uint32_t layer) const { return *layers_[coders_[layer]]; }

 private:
  std::vector<std::unique_ptr<const GpuLayer>> layers_;
  std::vector<uint32_t> coders_;
};

// The models that were asked for, by fingerprint, those that are not taken too: the answer for a
// model stays the same as long as it is there, and what it has on the card goes with it.
// Thread-safe.
class GpuModels {
 public:
  // Null as GpuModel::Create.
  [[nodiscard]] std::shared_ptr<const GpuModel> Get(const std::shared_ptr<const Model>& model);

 private:
  struct Known {
    std::weak_ptr<const Model> of;
    std::shared_ptr<const GpuModel> on_gpu;
  };

  Mutex mu_;
  absl::flat_hash_map<Fingerprint, Known> models_ SKETCHKV_GUARDED_BY(mu_);
};

}  // namespace sketchkv::gpu
