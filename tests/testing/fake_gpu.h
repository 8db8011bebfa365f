#pragma once

#include <atomic>
#include <cstddef>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "service/engine/gpu.h"

namespace sketchkv::testing {

// A card that is none: its memory is the host's, filled with garbage, and the CPU's codec works on
// it. Fails when the test says so.
class FakeGpu final : public Gpu {
 public:
  explicit FakeGpu(size_t tier_bytes);

  // From now on every call says UNAVAILABLE, and the card's memory is garbage.
  void Break();
  std::function<bool(const Model&)> takes = [](const Model&) { return true; };
  // What was asked for.
  std::atomic<int> attentions{0}, scores{0}, copies_up{0}, copies_down{0};
  std::atomic<int> encodes{0}, decodes{0}, host_encodes{0};
  std::atomic<int> attentions_in_place{0};  // whose queries and answers lie on the card

  // Whether it encodes rows of the host.
  std::atomic<bool> takes_host_rows{false};

  // In the middle of an encode, and of a copy to the card; empty: nothing.
  std::function<void()> on_encode, on_copy_up;

  // Memory of a process that has it on the card: `bytes`, under this handle.
  void Share(const GpuIpcHandle& handle, std::span<std::byte> bytes) { shared_[handle] = bytes; }
  // How many hold memory of OpenShared.
  [[nodiscard]] long num_open() const { return opened_.use_count() - 1; }

  [[nodiscard]] std::string name() const override { return "fake"; }
  [[nodiscard]] std::vector<std::span<std::byte>> TierMemory() const override;
  [[nodiscard]] bool Takes(const std::shared_ptr<const Model>& model) override {
    return takes(*model);
  }
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
  [[nodiscard]] absl::Status Check() override { return Alive(); }
  [[nodiscard]] Stats GetStats() const override {
    const auto calls = static_cast<uint64_t>(attentions.load());
    return {.attention_calls_total = calls, .attention_batches_total = calls};
  }

 private:
  [[nodiscard]] absl::Status Alive() const;

  [[nodiscard]] static absl::Status EncodePart(const GpuPart& part, const std::byte* payload);
  // The bytes of a cell on the card or on the host.
  static std::span<std::byte> CellIn(const GpuPart& part, const WriteHandle::Cell& cell);

  std::vector<std::byte> memory_;
  std::map<GpuIpcHandle, std::span<std::byte>> shared_;
  const std::shared_ptr<int> opened_ = std::make_shared<int>();
  std::atomic<bool> broken_{false};
};

}  // namespace sketchkv::testing
