#pragma once

#include <cuda_runtime_api.h>

#include <span>
#include <string>

#include "absl/status/statusor.h"
#include "tests/bench/contender.h"
#include "tests/gpu/device_array.h"

namespace sketchkv::bench {

// Name, multiprocessors and L2 of the card that CUDA takes first. UNAVAILABLE, with a message that
// begins "needs a GPU", where there is none.
[[nodiscard]] absl::StatusOr<std::string> DescribeCard();

// A contender whose passes are launches. A repetition lasts from one CUDA event to another, around
// as many passes as fill option min_ms; one pass before them, which does not count, wakes the card.
class GpuContender : public Contender {
 public:
  GpuContender(const GpuContender&) = delete;
  ~GpuContender() override;
  [[nodiscard]] absl::StatusOr<Repetition> Run() final;

 protected:
  explicit GpuContender(const Options& options);
  // Puts one pass on the stream.
  virtual void Enqueue(cudaStream_t stream) = 0;
  [[nodiscard]] virtual double units_per_pass() const { return 1; }

 private:
  // Milliseconds of so many passes.
  [[nodiscard]] float Time(int passes);

  const double min_ms_;
  cudaStream_t stream_ = nullptr;
  cudaEvent_t begin_ = nullptr, end_ = nullptr;
  int passes_ = 0;  // of a repetition; 0: not known yet
};

// `size` bytes of the card's memory that repeat `bytes`.
[[nodiscard]] testing::DeviceArray<uint8_t> RepeatedOnCard(std::span<const std::byte> bytes,
                                                           size_t size);

}  // namespace sketchkv::bench
