#include "service/gpu/cuda_gpu.h"

#include <algorithm>
#include <cstdlib>

#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"
#include "service/gpu/copier.h"
#include "service/gpu/host_rows.h"
#include "service/gpu/scores.h"

namespace sketchkv::gpu {
namespace {

constexpr size_t kAttentionLanes = 2;
constexpr size_t kCopyLanes = 2;
// What waits for one goes in one batch; meanwhile the card has others to do.
constexpr size_t kCodecLanes = 2;
// Each keeps a thread busy with copying; meanwhile the other threads encode.
constexpr size_t kRowsLanes = 8;
// Of the tier: never one huge allocation, which is slow to make and, where memory is scattered,
// fails first.
constexpr uint64_t kChunkBytes = uint64_t{1} << 30;
// For CUDA's own needs and what other processes ask for at the same time.
constexpr uint64_t kSpareBytes = uint64_t{256} << 20;

absl::StatusOr<std::unique_ptr<Lanes>> CreateLanes(size_t count, const Lane::Options& options) {
  std::vector<std::unique_ptr<Lane>> lanes;
  for (size_t i = 0; i < count; ++i) {
    SKETCHKV_ASSIGN_OR_RETURN(std::unique_ptr<Lane> lane, Lane::Create(options));
    lanes.push_back(std::move(lane));
  }
  return std::make_unique<Lanes>(std::move(lanes));
}

}  // namespace

absl::StatusOr<std::unique_ptr<CudaGpu>> CudaGpu::Open(const GpuOptions& options) {
  // Kernels are loaded now: later there may be no memory left for them.
  (void)setenv("CUDA_MODULE_LOADING", "EAGER", /*overwrite=*/0);
  int count = 0;
  const cudaError_t counted = cudaGetDeviceCount(&count);
  if (counted != cudaSuccess || options.device >= count) {
    return absl::NotFoundError(
        counted != cudaSuccess
            ? absl::StrCat("no GPU: ", cudaGetErrorString(counted))
            : absl::StrCat("GPU ", options.device, " is not there; there are ", count));
  }
  std::unique_ptr<CudaGpu> gpu(new CudaGpu);
  gpu->device_ = options.device;
  SKETCHKV_RETURN_IF_ERROR(gpu->UseDevice());
  cudaDeviceProp properties;
  SKETCHKV_RETURN_IF_CUDA_ERROR(cudaGetDeviceProperties(&properties, options.device));
  gpu->name_ = properties.name;
  if (properties.major < 8) {
    return absl::NotFoundError(absl::StrCat(gpu->name_, " has compute capability ",
                                            properties.major, ".", properties.minor,
                                            "; it needs 8.0"));
  }
  const auto multiprocessors = static_cast<uint32_t>(properties.multiProcessorCount);
  SKETCHKV_ASSIGN_OR_RETURN(
      gpu->attention_lanes_,
      CreateLanes(kAttentionLanes, {.multiprocessors = multiprocessors, .attends = true}));
  SKETCHKV_ASSIGN_OR_RETURN(gpu->copy_lanes_, CreateLanes(kCopyLanes, {}));
  SKETCHKV_ASSIGN_OR_RETURN(gpu->codec_lanes_, CreateLanes(kCodecLanes, {}));
  SKETCHKV_ASSIGN_OR_RETURN(gpu->rows_lanes_, CreateLanes(kRowsLanes, {}));
  gpu->codec_ = std::make_unique<CodecQueue>(gpu->codec_lanes_.get());
  SKETCHKV_ASSIGN_OR_RETURN(gpu->tables_, BlockTables::Create(kAttentionLanes));
  gpu->attention_ = std::make_unique<AttentionQueue>(gpu->attention_lanes_.get(),
                                                     gpu->tables_.get(), options.batch_delay);
  gpu->ipc_ = std::make_unique<CudaIpc>(options.device);
  gpu->ipc_cache_ = std::make_unique<IpcCache>(gpu->ipc_.get(), &gpu->clock_);
  SKETCHKV_RETURN_IF_ERROR(gpu->TakeTier(options.tier_bytes));
  return gpu;
}

absl::Status CudaGpu::TakeTier(uint64_t bytes) {
  size_t free = 0, total = 0;
  SKETCHKV_RETURN_IF_CUDA_ERROR(cudaMemGetInfo(&free, &total));
  const uint64_t most = free > kSpareBytes ? free - kSpareBytes : 0;
  if (bytes == 0) bytes = std::min<uint64_t>(free / 4 * 3, most);
  if (bytes > most) {
    return absl::ResourceExhaustedError(absl::StrCat("--gpu-bytes is ", bytes, "; ", name_, " has ",
                                                     most, " free, beside ", kSpareBytes,
                                                     " to spare"));
  }
  for (uint64_t taken = 0; taken < bytes; taken += kChunkBytes) {
    SKETCHKV_ASSIGN_OR_RETURN(DeviceBuffer chunk,
                              DeviceBuffer::Create(std::min(kChunkBytes, bytes - taken)));
    tier_.push_back(std::move(chunk));
  }
  return absl::OkStatus();
}

absl::Status CudaGpu::UseDevice() const {
  return CudaStatus(cudaSetDevice(device_), "choosing the card");
}

std::vector<std::span<std::byte>> CudaGpu::TierMemory() const {
  std::vector<std::span<std::byte>> chunks;
  for (const DeviceBuffer& chunk : tier_) chunks.push_back(chunk.bytes());
  return chunks;
}

bool CudaGpu::Takes(const std::shared_ptr<const Model>& model) {
  return UseDevice().ok() && models_.Get(model) != nullptr;
}

absl::Status CudaGpu::CopyToHost(std::span<const std::byte> from, std::byte* to) {
  SKETCHKV_RETURN_IF_ERROR(UseDevice());
  const Lanes::Hold lane = copy_lanes_->Take();
  return lane->End(CopyDown(&*lane, from, to));
}

absl::Status CudaGpu::CopyToGpu(std::span<const std::byte> from, std::byte* to) {
  SKETCHKV_RETURN_IF_ERROR(UseDevice());
  const Lanes::Hold lane = copy_lanes_->Take();
  return lane->End(CopyUp(&*lane, from, to));
}

absl::Status CudaGpu::Attend(std::span<const GpuAttention> jobs, Place place,
                             const Patience& patience) {
  if (jobs.empty()) return absl::OkStatus();
  SKETCHKV_RETURN_IF_ERROR(UseDevice());
  return attention_->Run(jobs, models_.Get(jobs.front().query.model), place, patience);
}

absl::Status CudaGpu::Score(std::span<const GpuScores> jobs, const Patience& patience) {
  SKETCHKV_RETURN_IF_ERROR(UseDevice());
  for (const GpuScores& job : jobs) {
    SKETCHKV_ASSIGN_OR_RETURN(const Lanes::Hold lane, attention_lanes_->Take(patience));
    SKETCHKV_RETURN_IF_ERROR(lane->End(
        ComputeScoresOn(&*lane, lane.index(), tables_.get(), *models_.Get(job.query.model), job)));
  }
  return absl::OkStatus();
}

absl::Status CudaGpu::Encode(std::span<GpuEncoding> parts) {
  SKETCHKV_RETURN_IF_ERROR(UseDevice());
  std::vector<CodecQueue::Job> jobs;
  jobs.reserve(parts.size());
  for (GpuEncoding& one : parts) {
    const KvLayout& layout = one.part.model->layout();
    jobs.push_back({.model = models_.Get(one.part.model),
                    .part = &one.part,
                    .way = CodecWay::kEncode,
                    .rows = {layout.key_dtype, layout.value_dtype,
                             const_cast<std::byte*>(one.payload)},  // which is only read
                    .refused = &one.refused});
  }
  return codec_->Run(jobs);
}

absl::StatusOr<bool> CudaGpu::EncodeFromHost(const GpuPart& part, const Payload& payload,
                                             const std::function<void(uint64_t end)>& reading,
                                             absl::Status* refused) {
  if (!TakesHostRows(part, payload.size())) return false;
  const std::optional<Lanes::Hold> lane = rows_lanes_->TryTake();
  if (!lane) return false;
  SKETCHKV_RETURN_IF_ERROR(UseDevice());
  const std::shared_ptr<const GpuModel> model = models_.Get(part.model);
  SKETCHKV_RETURN_IF_ERROR(
      (*lane)->End(EncodeHostRows(&**lane, *model, part, payload, reading, refused)));
  return true;
}

absl::Status CudaGpu::Decode(const GpuPart& part, DType dtype, std::byte* payload) {
  SKETCHKV_RETURN_IF_ERROR(UseDevice());
  const CodecQueue::Job job = {.model = models_.Get(part.model),
                               .part = &part,
                               .way = CodecWay::kDecode,
                               .rows = {dtype, dtype, payload}};
  return codec_->Run({&job, 1});
}

absl::StatusOr<GpuBytes> CudaGpu::OpenShared(const GpuIpcHandle& handle) {
  return ipc_cache_->Open(handle);
}

absl::Status CudaGpu::Check() {
  SKETCHKV_RETURN_IF_ERROR(UseDevice());
  ipc_cache_->CloseUnused();
  return CudaStatus(
      cudaStreamQuery(nullptr) == cudaErrorNotReady ? cudaSuccess : cudaPeekAtLastError(),
      "the card");
}

}  // namespace sketchkv::gpu

namespace sketchkv {

absl::StatusOr<std::unique_ptr<Gpu>> OpenGpu(const GpuOptions& options) {
  return gpu::CudaGpu::Open(options);
}

}  // namespace sketchkv
