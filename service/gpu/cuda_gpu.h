#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "service/engine/gpu.h"
#include "service/gpu/attention_queue.h"
#include "service/gpu/block_tables.h"
#include "service/gpu/buffer.h"
#include "service/gpu/codec_queue.h"
#include "service/gpu/cuda_ipc.h"
#include "service/gpu/gpu_model.h"
#include "service/gpu/ipc_cache.h"
#include "service/gpu/lane.h"
#include "service/gpu/open_gpu.h"

namespace sketchkv::gpu {

// A card through CUDA. All its memory is taken by Open.
class CudaGpu final : public Gpu {
 public:
  [[nodiscard]] static absl::StatusOr<std::unique_ptr<CudaGpu>> Open(const GpuOptions& options);

  [[nodiscard]] std::vector<std::span<std::byte>> TierMemory() const override;
  [[nodiscard]] bool Takes(const std::shared_ptr<const Model>& model) override;
  [[nodiscard]] absl::Status CopyToHost(std::span<const std::byte> from, std::byte* to) override;
  [[nodiscard]] absl::Status CopyToGpu(std::span<const std::byte> from, std::byte* to) override;
  [[nodiscard]] absl::Status Attend(std::span<const GpuAttention> jobs, Place place,
                                    const Patience& patience) override;
  [[nodiscard]] absl::Status Score(std::span<const GpuScores> jobs,
                                   const Patience& patience) override;
  [[nodiscard]] absl::Status Encode(std::span<GpuEncoding> parts) override;
  [[nodiscard]] absl::StatusOr<bool> EncodeFromHost(
      const GpuPart& part, const Payload& payload, const std::function<void(uint64_t end)>& reading,
      absl::Status* refused) override;
  [[nodiscard]] absl::Status Decode(const GpuPart& part, DType dtype, std::byte* payload) override;
  [[nodiscard]] absl::StatusOr<GpuBytes> OpenShared(const GpuIpcHandle& handle) override;
  [[nodiscard]] absl::Status Check() override;
  [[nodiscard]] Stats GetStats() const override { return attention_->GetStats(); }
  [[nodiscard]] std::string name() const override { return name_; }

 private:
  CudaGpu() = default;
  absl::Status TakeTier(uint64_t bytes);
  // CUDA calls are for the thread's device, and threads come from outside.
  absl::Status UseDevice() const;

  int device_ = 0;
  std::string name_;
  std::vector<DeviceBuffer> tier_;
  GpuModels models_;
  std::unique_ptr<Lanes> attention_lanes_;
  std::unique_ptr<Lanes> copy_lanes_;
  std::unique_ptr<Lanes> codec_lanes_;
  std::unique_ptr<CodecQueue> codec_;
  std::unique_ptr<Lanes> rows_lanes_;  // for rows that come from the host
  std::unique_ptr<BlockTables> tables_;
  std::unique_ptr<AttentionQueue> attention_;
  const SteadyClock clock_;
  std::unique_ptr<CudaIpc> ipc_;
  std::unique_ptr<IpcCache> ipc_cache_;
};

}  // namespace sketchkv::gpu
