#include "service/gpu/gpu_model.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <set>
#include <string>

namespace sketchkv::gpu {
namespace {

// The first layer whose cells are made the same way.
uint32_t CoderOf(const std::vector<CodecProfile>& profiles, uint32_t layer) {
  if (profiles[layer].uses_tables()) return layer;
  const auto first = std::find(profiles.begin(), profiles.end(), profiles[layer]);
  return static_cast<uint32_t>(first - profiles.begin());
}

}  // namespace

std::shared_ptr<const GpuModel> GpuModel::Create(const Model& model) {
  auto made = std::make_shared<GpuModel>();
  std::set<std::string> general;  // profiles that take the general path
  for (uint32_t layer = 0; layer < model.layout().num_layers; ++layer) {
    absl::StatusOr<std::unique_ptr<GpuLayer>> one = GpuLayer::Create(model, layer);
    if (!one.ok()) {
      spdlog::warn("model {} stays on the host: {}", model.name,
                   std::string(one.status().message()));
      return nullptr;
    }
    if (!(*one)->tuned()) general.insert(model.codec->profiles()[layer].name);
    made->layers_.push_back(*std::move(one));
    made->coders_.push_back(CoderOf(model.codec->profiles(), layer));
  }
  for (const std::string& profile : general) {
    spdlog::info("model {}: profile {} takes the general path on the GPU, not the tuned kernels",
                 model.name, profile);
  }
  return made;
}

std::shared_ptr<const GpuModel> GpuModels::Get(const std::shared_ptr<const Model>& model) {
  MutexLock lock(&mu_);
  if (const auto it = models_.find(model->fingerprint); it != models_.end()) {
    if (it->second.of.expired()) it->second.of = model;  // registered anew, or by another name
    return it->second.on_gpu;
  }
  absl::erase_if(models_, [](const auto& known) { return known.second.of.expired(); });
  return (models_[model->fingerprint] = {model, GpuModel::Create(*model)}).on_gpu;
}

}  // namespace sketchkv::gpu
