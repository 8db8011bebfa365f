#include "service/gpu/lane.h"

#include <chrono>
#include <thread>

#include "absl/strings/str_cat.h"

namespace sketchkv::gpu {
namespace {

// Most calls are done in less, and a thread that sleeps takes longer than that to wake up.
constexpr std::chrono::microseconds kSpin{300};
constexpr std::chrono::microseconds kNap{50};

// A call is thousands of times shorter: a card that takes so long has failed, though it does not
// say so, and would hold every thread that waits for it.
constexpr std::chrono::seconds kHung{10};

}  // namespace

absl::StatusOr<std::unique_ptr<Lane>> Lane::Create(const Options& options) {
  std::unique_ptr<Lane> lane(new Lane);
  SKETCHKV_RETURN_IF_CUDA_ERROR(cudaStreamCreateWithFlags(&lane->stream_, cudaStreamNonBlocking));
  for (cudaEvent_t& done : lane->done_) {
    SKETCHKV_RETURN_IF_CUDA_ERROR(cudaEventCreateWithFlags(&done, cudaEventDisableTiming));
  }
  SKETCHKV_ASSIGN_OR_RETURN(lane->pinned_, PinnedBuffer::Create(kStagingBytes));
  SKETCHKV_ASSIGN_OR_RETURN(lane->device_, DeviceBuffer::Create(kStagingBytes));
  if (!options.attends) return lane;
  SKETCHKV_ASSIGN_OR_RETURN(lane->pinned_tables_,
                            PinnedBuffer::Create(kTableBlocks * sizeof(const uint8_t*)));
  lane->multiprocessors_ = options.multiprocessors;
  SKETCHKV_RETURN_IF_CUDA_ERROR(cuda::AttendBlocks(&lane->attend_blocks_));
  SKETCHKV_ASSIGN_OR_RETURN(lane->partials_, DeviceBuffer::Create(kPartialFloats * sizeof(float)));
  SKETCHKV_ASSIGN_OR_RETURN(lane->prepared_, DeviceBuffer::Create(kPreparedFloats * sizeof(float)));
  SKETCHKV_ASSIGN_OR_RETURN(lane->turned_, DeviceBuffer::Create(kTurnedFloats * sizeof(float)));
  SKETCHKV_ASSIGN_OR_RETURN(lane->arrivals_, DeviceBuffer::Create(kMaxPairs * sizeof(uint32_t)));
  SKETCHKV_RETURN_IF_CUDA_ERROR(
      cudaMemsetAsync(lane->arrivals_.data(), 0, lane->arrivals_.size(), lane->stream_));
  SKETCHKV_RETURN_IF_ERROR(lane->Wait());
  return lane;
}

Lane::~Lane() {
  for (const cudaEvent_t done : done_) {
    if (done != nullptr) (void)cudaEventDestroy(done);
  }
  if (stream_ != nullptr) (void)cudaStreamDestroy(stream_);
}

absl::Status Lane::Up(size_t begin, size_t end) {
  if (begin == end) return absl::OkStatus();
  return CudaStatus(
      cudaMemcpyAsync(device(begin), host(begin), end - begin, cudaMemcpyHostToDevice, stream_),
      "copying to the card");
}

absl::Status Lane::Down(size_t begin, size_t end) {
  if (begin == end) return absl::OkStatus();
  return CudaStatus(
      cudaMemcpyAsync(host(begin), device(begin), end - begin, cudaMemcpyDeviceToHost, stream_),
      "copying from the card");
}

absl::Status Lane::Wait() {
  SKETCHKV_RETURN_IF_ERROR(MarkHalf(0));
  return WaitForHalf(0);
}

absl::Status Lane::End(absl::Status status) {
  if (status.ok() || absl::IsUnavailable(status)) return status;
  absl::Status ended = Wait();
  // Of two errors the one that is for good is told.
  return absl::IsUnavailable(ended) ? ended : status;
}

absl::Status Lane::MarkHalf(size_t half) {
  return CudaStatus(cudaEventRecord(done_[half], stream_), "recording an event");
}

absl::Status Lane::WaitForHalf(size_t half) {
  SKETCHKV_RETURN_IF_ERROR(hung_);
  const auto begin = std::chrono::steady_clock::now();
  cudaError_t state = cudaEventQuery(done_[half]);
  while (state == cudaErrorNotReady) {
    const auto waited = std::chrono::steady_clock::now() - begin;
    if (waited > kHung) {
      return hung_ = absl::UnavailableError(
                 absl::StrCat("the card has not answered for ", kHung.count(), " s"));
    }
    if (waited < kSpin) {
      std::this_thread::yield();
    } else {
      std::this_thread::sleep_for(kNap);
    }
    state = cudaEventQuery(done_[half]);
  }
  return CudaStatus(state, "work on the card");
}

Lanes::Hold Lanes::Take() {
  MutexLock lock(&mu_);
  while (idle_.empty()) returned_.Wait(&mu_);
  return TakeIdle();
}

absl::StatusOr<Lanes::Hold> Lanes::Take(const Patience& patience) {
  MutexLock lock(&mu_);
  while (idle_.empty()) {
    SKETCHKV_RETURN_IF_ERROR(patience.Check());
    patience.Wait(&returned_, &mu_);
  }
  return TakeIdle();
}

Lanes::Hold Lanes::TakeIdle() {
  const size_t index = idle_.back();
  idle_.pop_back();
  return {this, index};
}

std::optional<Lanes::Hold> Lanes::TryTake() {
  MutexLock lock(&mu_);
  if (idle_.empty()) return std::nullopt;
  return TakeIdle();
}

void Lanes::Return(size_t index) {
  MutexLock lock(&mu_);
  idle_.push_back(index);
  returned_.NotifyOne();
}

}  // namespace sketchkv::gpu
