#pragma once

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <iostream>
#include <span>
#include <vector>

#include "absl/status/status.h"

// Memory of the GPU in tests.
namespace sketchkv::testing {

// Tests end at the first error of CUDA: what follows would not mean anything.
inline void CheckCuda(cudaError_t error) {
  if (error == cudaSuccess) return;
  std::cerr << "CUDA: " << cudaGetErrorString(error) << std::endl;
  std::abort();
}
inline void CheckOk(const absl::Status& status) {
  if (status.ok()) return;
  std::cerr << status << std::endl;
  std::abort();
}

// Skips a test where there is no card.
#define SKETCHKV_NEED_GPU()                                                           \
  do {                                                                                \
    int count = 0;                                                                    \
    if (const cudaError_t error = cudaGetDeviceCount(&count); error != cudaSuccess) { \
      GTEST_SKIP() << "needs a GPU: " << cudaGetErrorString(error);                   \
    }                                                                                 \
  } while (false)

// `size` elements; may be moved, not copied.
template <typename T>
class DeviceArray {
 public:
  explicit DeviceArray(size_t size) : size_(size) {
    CheckCuda(cudaMalloc(reinterpret_cast<void**>(&data_), std::max<size_t>(size, 1) * sizeof(T)));
  }
  explicit DeviceArray(std::span<const T> from) : DeviceArray(from.size()) {
    CheckCuda(cudaMemcpy(data_, from.data(), from.size_bytes(), cudaMemcpyHostToDevice));
  }
  DeviceArray(DeviceArray&& other) noexcept : data_(other.data_), size_(other.size_) {
    other.data_ = nullptr;
  }
  DeviceArray& operator=(DeviceArray&&) = delete;
  ~DeviceArray() { cudaFree(data_); }

  [[nodiscard]] T* data() const { return data_; }
  [[nodiscard]] size_t size() const { return size_; }
  void Fill(int byte) { CheckCuda(cudaMemset(data_, byte, size_ * sizeof(T))); }
  [[nodiscard]] std::vector<T> ToHost() const {
    std::vector<T> host(size_);
    CheckCuda(cudaMemcpy(host.data(), data_, size_ * sizeof(T), cudaMemcpyDeviceToHost));
    return host;
  }

 private:
  T* data_ = nullptr;
  size_t size_;
};

}  // namespace sketchkv::testing
