#include "service/gpu/gpu_model.h"

#include <spdlog/spdlog.h>

#include <optional>

namespace sketchkv::gpu {

std::shared_ptr<const GpuModel> GpuModel::Create(const Model& model) {
  auto made = std::make_shared<GpuModel>();
  const std::vector<CodecProfile>& profiles = model.codec->profiles();
  for (uint32_t layer = 0; layer < profiles.size(); ++layer) {
    if (layer > 0 && profiles[layer] == profiles[layer - 1]) {
      made->plan_of_layer_.push_back(made->plan_of_layer_.back());
      continue;
    }
    std::optional<cuda::CodecPlan> plan = cuda::MakeCodecPlan(model.layout(), profiles[layer]);
    if (!plan) {
      spdlog::info(
          "model {}: no GPU kernels for layer {} (profile {}): its blocks stay on the host",
          model.name, layer, profiles[layer].name);
      return nullptr;
    }
    made->plan_of_layer_.push_back(static_cast<uint32_t>(made->plans_.size()));
    made->plans_.push_back(*plan);
  }
  return made;
}

std::shared_ptr<const GpuModel> GpuModels::Get(const Model& model) {
  MutexLock lock(&mu_);
  const auto it = models_.find(model.fingerprint);
  if (it != models_.end()) return it->second;
  if (models_.size() >= kMaxModels) models_.clear();
  return models_[model.fingerprint] = GpuModel::Create(model);
}

}  // namespace sketchkv::gpu
