#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "kernels/base/mutex.h"
#include "kernels/cuda/plan.h"
#include "service/engine/model_registry.h"

namespace sketchkv::gpu {

// How the kernels see the layers of a model. Immutable.
class GpuModel {
 public:
  // Null when they do not take it.
  [[nodiscard]] static std::shared_ptr<const GpuModel> Create(const Model& model);

  // Layers of equal profiles have the same number.
  [[nodiscard]] uint32_t plan_of(uint32_t layer) const { return plan_of_layer_[layer]; }
  [[nodiscard]] const cuda::CodecPlan& plan(uint32_t number) const { return plans_[number]; }
  [[nodiscard]] uint32_t num_plans() const { return static_cast<uint32_t>(plans_.size()); }

 private:
  std::vector<cuda::CodecPlan> plans_;
  std::vector<uint32_t> plan_of_layer_;
};

// The models that were asked for, by fingerprint, those that are not taken too. Thread-safe.
class GpuModels {
 public:
  // Null when the kernels do not take it.
  [[nodiscard]] std::shared_ptr<const GpuModel> Get(const Model& model);

 private:
  // Of models nobody asks for any more too; more than are registered at a time.
  static constexpr size_t kMaxModels = 2 * ModelRegistry::kMaxModels;

  Mutex mu_;
  absl::flat_hash_map<Fingerprint, std::shared_ptr<const GpuModel>> models_
      SKETCHKV_GUARDED_BY(mu_);
};

}  // namespace sketchkv::gpu
