#include "tests/bench/gpu_sdk_contenders.h"

#include <cuda_runtime_api.h>

#include <chrono>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"
#include "tests/bench/sdk_session.h"

namespace sketchkv::bench {
namespace {

absl::Status CudaStatus(cudaError_t error) {
  if (error == cudaSuccess) return absl::OkStatus();
  return absl::UnavailableError(absl::StrCat("CUDA: ", cudaGetErrorString(error)));
}

// Memory of the card that another process may open.
class CardMemory {
 public:
  static absl::StatusOr<std::unique_ptr<CardMemory>> Create(size_t bytes) {
    std::unique_ptr<CardMemory> memory(new CardMemory);
    SKETCHKV_RETURN_IF_ERROR(CudaStatus(cudaMalloc(&memory->data_, bytes)));
    memory->shared_.length = bytes;
    cudaIpcMemHandle_t handle;
    SKETCHKV_RETURN_IF_ERROR(CudaStatus(cudaIpcGetMemHandle(&handle, memory->data_)));
    std::memcpy(memory->shared_.ipc_handle.data(), &handle, sizeof(handle));
    return memory;
  }
  static absl::StatusOr<std::unique_ptr<CardMemory>> Create(std::span<const std::byte> from) {
    SKETCHKV_ASSIGN_OR_RETURN(std::unique_ptr<CardMemory> memory, Create(from.size()));
    SKETCHKV_RETURN_IF_ERROR(
        CudaStatus(cudaMemcpy(memory->data_, from.data(), from.size(), cudaMemcpyHostToDevice)));
    return memory;
  }
  ~CardMemory() { (void)cudaFree(data_); }

  [[nodiscard]] const GpuMemory& shared() const { return shared_; }

 private:
  CardMemory() = default;

  void* data_ = nullptr;
  GpuMemory shared_;
};

class GpuPut final : public Contender {
 public:
  static Made Create(const Options& options) {
    auto made = std::unique_ptr<GpuPut>(new GpuPut);
    SKETCHKV_ASSIGN_OR_RETURN(made->session_, SdkSession::Open(options));
    made->items_ = options.Number("items", 1);
    SKETCHKV_ASSIGN_OR_RETURN(made->rows_,
                              CardMemory::Create(made->session_->NewChain(1)[0].payload));
    return made;
  }

  absl::StatusOr<Repetition> Run() override {
    SKETCHKV_RETURN_IF_ERROR(session_->client().Clear(session_->model().name).status());
    std::vector<PutPart> parts = session_->NewChain(items_);
    for (PutPart& part : parts) {
      part.payload = {};
      part.gpu_payload = rows_->shared();
    }
    const double begin = Now();
    SKETCHKV_RETURN_IF_ERROR(session_->PutAll(parts));
    return Repetition{Now() - begin,
                      static_cast<double>(items_ * session_->model().raw_block_bytes)};
  }

 private:
  std::unique_ptr<SdkSession> session_;
  std::unique_ptr<CardMemory> rows_;  // of every block
  uint64_t items_ = 1;
};

class GpuAttend final : public Contender {
 public:
  static Made Create(const Options& options) {
    constexpr size_t kQueryHeads = 32;
    auto made = std::unique_ptr<GpuAttend>(new GpuAttend);
    SKETCHKV_ASSIGN_OR_RETURN(made->session_, SdkSession::Open(options));
    AttentionCall& call = made->call_;
    call.model = made->session_->model().name;
    call.queries_per_kv_head = 4;
    SKETCHKV_ASSIGN_OR_RETURN(const uint64_t lease,
                              made->session_->PutSequence(options.Number("tokens", 1024)));
    call.items.resize(1);
    call.items[0].lease_id = lease;
    const std::vector<float> queries = made->session_->Queries(kQueryHeads * kDim);
    SKETCHKV_ASSIGN_OR_RETURN(made->queries_,
                              CardMemory::Create(std::as_bytes(std::span(queries))));
    SKETCHKV_ASSIGN_OR_RETURN(made->outputs_,
                              CardMemory::Create(kQueryHeads * (kDim + 1) * sizeof(float)));
    call.gpu_queries = made->queries_->shared();
    call.gpu_outputs = made->outputs_->shared();
    return made;
  }

  absl::StatusOr<Repetition> Run() override {
    const double begin = Now();
    const auto outputs = session_->client().Attend(call_);
    const double end = Now();
    SKETCHKV_RETURN_IF_ERROR(outputs.status());
    return Repetition{end - begin, 1};
  }

 private:
  std::unique_ptr<SdkSession> session_;
  std::unique_ptr<CardMemory> queries_, outputs_;
  AttentionCall call_;
};

}  // namespace

void AddGpuSdkContenders(Registry* registry) {
  registry->Add("sdk.gpu.put", GpuPut::Create);
  registry->Add("sdk.gpu.attend", GpuAttend::Create);
}

}  // namespace sketchkv::bench
