#include "tests/bench/gpu_contender.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"

namespace sketchkv::bench {

using testing::CheckCuda;

absl::StatusOr<std::string> DescribeCard() {
  cudaDeviceProp card;
  if (const cudaError_t error = cudaGetDeviceProperties(&card, 0); error != cudaSuccess) {
    return absl::UnavailableError(absl::StrCat("needs a GPU: ", cudaGetErrorString(error)));
  }
  return absl::StrCat(card.name, ", ", card.multiProcessorCount, " SMs, ", card.l2CacheSize >> 20,
                      " MiB of L2");
}

GpuContender::GpuContender(const Options& options)
    : min_ms_(static_cast<double>(options.Number("min_ms", 15))) {
  CheckCuda(cudaStreamCreate(&stream_));
  CheckCuda(cudaEventCreate(&begin_));
  CheckCuda(cudaEventCreate(&end_));
}

GpuContender::~GpuContender() {
  cudaEventDestroy(end_);
  cudaEventDestroy(begin_);
  cudaStreamDestroy(stream_);
}

absl::StatusOr<Repetition> GpuContender::Run() {
  Enqueue(stream_);
  if (passes_ == 0) {
    passes_ = std::max(static_cast<int>(std::ceil(min_ms_ / std::max(Time(1), 1e-3f))), 1);
  }
  return Repetition{1e6 * Time(passes_), passes_ * units_per_pass()};
}

float GpuContender::Time(int passes) {
  CheckCuda(cudaEventRecord(begin_, stream_));
  for (int i = 0; i < passes; ++i) Enqueue(stream_);
  CheckCuda(cudaEventRecord(end_, stream_));
  CheckCuda(cudaEventSynchronize(end_));
  float milliseconds = 0;
  CheckCuda(cudaEventElapsedTime(&milliseconds, begin_, end_));
  return milliseconds;
}

testing::DeviceArray<uint8_t> RepeatedOnCard(std::span<const std::byte> bytes, size_t size) {
  testing::DeviceArray<uint8_t> array(size);
  size_t filled = std::min(bytes.size(), size);
  CheckCuda(cudaMemcpy(array.data(), bytes.data(), filled, cudaMemcpyHostToDevice));
  while (filled < size) {
    const size_t more = std::min(filled, size - filled);
    CheckCuda(cudaMemcpy(array.data() + filled, array.data(), more, cudaMemcpyDeviceToDevice));
    filled += more;
  }
  return array;
}

}  // namespace sketchkv::bench
