#include "tests/gpu/general_runner.h"

#include <cstring>
#include <new>
#include <vector>

#include "tests/gpu/device_array.h"
#include "tests/gpu/general_on_host.h"

namespace sketchkv::testing {
namespace {

class HostRunner final : public GeneralRunner {
 public:
  uint8_t* Put(const void* data, size_t bytes) override {
    memory_.emplace_back(new (std::align_val_t{64}) uint8_t[bytes + 1]);
    std::memcpy(memory_.back().get(), data, bytes);
    return memory_.back().get();
  }
  void Set(void* to, const void* data, size_t bytes) override { std::memcpy(to, data, bytes); }
  void Get(const void* from, void* to, size_t bytes) override { std::memcpy(to, from, bytes); }
  void Encode(const cuda::GeneralPlan& plan, cuda::GeneralEncodeArgs args) override {
    EncodeOnHost(plan, args);
  }
  void Decode(const cuda::GeneralPlan& plan, cuda::GeneralDecodeArgs args) override {
    DecodeOnHost(plan, args);
  }
  void Score(const cuda::GeneralPlan& plan, cuda::GeneralScoreArgs args) override {
    ScoreOnHost(plan, args);
  }
  void Attend(const cuda::GeneralPlan& plan, cuda::GeneralAttendArgs args) override {
    AttendOnHost(plan, args);
  }

 private:
  struct Delete {
    void operator()(uint8_t* p) const { ::operator delete[](p, std::align_val_t{64}); }
  };
  std::vector<std::unique_ptr<uint8_t, Delete>> memory_;
};

class CardRunner final : public GeneralRunner {
 public:
  uint8_t* Put(const void* data, size_t bytes) override {
    memory_.emplace_back(std::span(static_cast<const uint8_t*>(data), bytes));
    return memory_.back().data();
  }
  void Set(void* to, const void* data, size_t bytes) override {
    CheckCuda(cudaMemcpy(to, data, bytes, cudaMemcpyHostToDevice));
  }
  void Get(const void* from, void* to, size_t bytes) override {
    CheckCuda(cudaDeviceSynchronize());
    CheckCuda(cudaMemcpy(to, from, bytes, cudaMemcpyDeviceToHost));
  }
  void Encode(const cuda::GeneralPlan& plan, cuda::GeneralEncodeArgs args) override {
    CheckCuda(cuda::LaunchGeneralEncode(plan, args, nullptr));
  }
  void Decode(const cuda::GeneralPlan& plan, cuda::GeneralDecodeArgs args) override {
    CheckCuda(cuda::LaunchGeneralDecode(plan, args, nullptr));
  }
  void Score(const cuda::GeneralPlan& plan, cuda::GeneralScoreArgs args) override {
    CheckCuda(cuda::LaunchGeneralScore(plan, args, nullptr));
  }
  void Attend(const cuda::GeneralPlan& plan, cuda::GeneralAttendArgs args) override {
    CheckCuda(cuda::LaunchGeneralAttend(plan, args, nullptr));
  }

 private:
  std::vector<DeviceArray<uint8_t>> memory_;
};

}  // namespace

std::string RunOnName(RunOn where) { return where == RunOn::kHost ? "OnHost" : "OnCard"; }

std::unique_ptr<GeneralRunner> MakeRunner(RunOn where) {
  if (where == RunOn::kHost) return std::make_unique<HostRunner>();
  return std::make_unique<CardRunner>();
}

}  // namespace sketchkv::testing
