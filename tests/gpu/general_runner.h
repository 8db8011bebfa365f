#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kernels/cuda/general/general.h"

// Where the general path runs in tests: on a card, or its device code on this host.
namespace sketchkv::testing {

class GeneralRunner {
 public:
  virtual ~GeneralRunner() = default;

  // A copy of `bytes` bytes, 64-byte aligned, where the kernels see it; as long as the runner.
  virtual uint8_t* Put(const void* data, size_t bytes) = 0;
  virtual void Set(void* to, const void* data, size_t bytes) = 0;
  // Waits for what was launched.
  virtual void Get(const void* from, void* to, size_t bytes) = 0;

  virtual void Encode(const cuda::GeneralPlan& plan, cuda::GeneralEncodeArgs args) = 0;
  virtual void Decode(const cuda::GeneralPlan& plan, cuda::GeneralDecodeArgs args) = 0;
  virtual void Score(const cuda::GeneralPlan& plan, cuda::GeneralScoreArgs args) = 0;
  virtual void Attend(const cuda::GeneralPlan& plan, cuda::GeneralAttendArgs args) = 0;

  template <typename T>
  T* PutAll(const std::vector<T>& data) {
    return reinterpret_cast<T*>(Put(data.data(), data.size() * sizeof(T)));
  }
  template <typename T>
  std::vector<T> GetAll(const T* from, size_t size) {
    std::vector<T> data(size);
    Get(from, data.data(), size * sizeof(T));
    return data;
  }
};

enum class RunOn { kHost, kCard };
[[nodiscard]] std::string RunOnName(RunOn where);
[[nodiscard]] std::unique_ptr<GeneralRunner> MakeRunner(RunOn where);

}  // namespace sketchkv::testing
