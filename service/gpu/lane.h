#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/base/mutex.h"
#include "kernels/cuda/launch.h"
#include "service/engine/patience.h"
#include "service/gpu/buffer.h"

namespace sketchkv::gpu {

// A stream and what a call needs on it, made once: nothing is allocated later. One caller at a
// time.
class Lane {
 public:
  // Of the staging area; a call that needs more goes in pieces.
  static constexpr size_t kStagingBytes = size_t{16} << 20;
  // (sequence, kv head) pairs of one launch of attention.
  static constexpr uint32_t kMaxPairs = 4096;
  // Scratch of the general path: of queries, and of outputs. One launch takes 8 queries of 256 kv
  // heads, whatever else is in it, and those of 576 channels with 4,608 sign bits have 5,200 each.
  static constexpr size_t kPreparedFloats = size_t{11} << 20;
  static constexpr size_t kTurnedFloats = size_t{4} << 20;
  // Of the tuned kernels, and of the general path's.
  static constexpr size_t kPartialFloats = size_t{5} << 20;
  // Blocks of tables that are for one batch only.
  static constexpr uint32_t kTableBlocks = uint32_t{1} << 20;

  struct Options {
    uint32_t multiprocessors = 0;  // of the card; of lanes that attend
    bool attends = false;          // else there are no tables, partials and so on
  };
  [[nodiscard]] static absl::StatusOr<std::unique_ptr<Lane>> Create(const Options& options);
  ~Lane();
  Lane(const Lane&) = delete;
  Lane& operator=(const Lane&) = delete;

  [[nodiscard]] cudaStream_t stream() const { return stream_; }
  // The staging area, on the host and on the card: what lies at an offset of one is copied to the
  // same of the other.
  [[nodiscard]] std::byte* host(size_t offset) const { return pinned_.data() + offset; }
  [[nodiscard]] std::byte* device(size_t offset) const { return device_.data() + offset; }
  [[nodiscard]] absl::Status Up(size_t begin, size_t end);
  [[nodiscard]] absl::Status Down(size_t begin, size_t end);
  // Where tables of this batch are written before they go to the card: [kTableBlocks].
  [[nodiscard]] const uint8_t** host_tables() const {
    return reinterpret_cast<const uint8_t**>(pinned_tables_.data());
  }
  [[nodiscard]] float* partials() const { return reinterpret_cast<float*>(partials_.data()); }
  [[nodiscard]] uint32_t* arrivals() const { return reinterpret_cast<uint32_t*>(arrivals_.data()); }

  [[nodiscard]] uint32_t multiprocessors() const { return multiprocessors_; }
  // That the card runs at a time, of the tuned kernel of attention.
  [[nodiscard]] const cuda::ThreadBlocks& attend_blocks() const { return attend_blocks_; }
  [[nodiscard]] float* prepared() const { return reinterpret_cast<float*>(prepared_.data()); }
  [[nodiscard]] float* turned() const { return reinterpret_cast<float*>(turned_.data()); }

  // Until the card has done all that was asked of the stream.
  [[nodiscard]] absl::Status Wait();
  // What a call says that used the lane. After an error the card may still be at what was begun
  // before it, and slots, the worker's memory and the lane go to others once the call ends: waits.
  [[nodiscard]] absl::Status End(absl::Status status);
  // The same in two parts, for one half of the staging area while the other is in use. Once it was
  // waited for too long all that follows is UNAVAILABLE: what was asked before may still come, over
  // what others have staged since.
  [[nodiscard]] absl::Status MarkHalf(size_t half);
  [[nodiscard]] absl::Status WaitForHalf(size_t half);

 private:
  Lane() = default;

  cudaStream_t stream_ = nullptr;
  cudaEvent_t done_[2] = {};  // Wait takes the first
  absl::Status hung_;
  PinnedBuffer pinned_, pinned_tables_;
  DeviceBuffer device_, partials_, arrivals_, prepared_, turned_;
  uint32_t multiprocessors_ = 0;
  cuda::ThreadBlocks attend_blocks_{};
};

// The lanes of a card. Thread-safe.
class Lanes {
 public:
  explicit Lanes(std::vector<std::unique_ptr<Lane>> lanes) : lanes_(std::move(lanes)) {
    for (size_t i = 0; i < lanes_.size(); ++i) idle_.push_back(i);
  }

  // A lane to one caller, until it goes.
  class Hold {
   public:
    Hold(Lanes* lanes, size_t index) : lanes_(lanes), index_(index) {}
    Hold(Hold&& other) noexcept
        : lanes_(std::exchange(other.lanes_, nullptr)), index_(other.index_) {}
    Hold& operator=(Hold&&) = delete;
    ~Hold() {
      if (lanes_ != nullptr) lanes_->Return(index_);
    }
    [[nodiscard]] Lane& operator*() const { return *lanes_->lanes_[index_]; }
    [[nodiscard]] Lane* operator->() const { return lanes_->lanes_[index_].get(); }
    [[nodiscard]] size_t index() const { return index_; }

   private:
    Lanes* lanes_;
    size_t index_;
  };
  // Waits for one; with patience, until that is at an end: DEADLINE_EXCEEDED, CANCELLED.
  [[nodiscard]] Hold Take();
  [[nodiscard]] absl::StatusOr<Hold> Take(const Patience& patience);
  // One that is idle now, or none.
  [[nodiscard]] std::optional<Hold> TryTake();
  [[nodiscard]] size_t size() const { return lanes_.size(); }

 private:
  [[nodiscard]] Hold TakeIdle() SKETCHKV_REQUIRES(mu_);
  void Return(size_t index);

  const std::vector<std::unique_ptr<Lane>> lanes_;
  Mutex mu_;
  CondVar returned_;
  std::vector<size_t> idle_ SKETCHKV_GUARDED_BY(mu_);
};

}  // namespace sketchkv::gpu
