#pragma once

#include <chrono>
#include <cstdint>
#include <deque>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "kernels/base/mutex.h"
#include "service/gpu/attention_batch.h"

namespace sketchkv::gpu {

// Brings attention of all callers to the card. There is no thread of its own: whoever waits while a
// lane is idle takes what is waiting, its own and others', and computes it. So what arrives while
// the lanes are busy is answered together, and a single call is not handed over to anybody.
// Thread-safe.
class AttentionQueue {
 public:
  // `delay`: for how long a caller lets others come before it starts a batch. All outlive it.
  AttentionQueue(Lanes* lanes, BlockTables* tables, std::chrono::microseconds delay)
      : lanes_(lanes), tables_(tables), delay_(delay) {}

  // Waits for the answers. UNAVAILABLE: the card failed, during this batch or an earlier one.
  // DEADLINE_EXCEEDED, CANCELLED: of a caller without patience, for whom not all had begun.
  [[nodiscard]] absl::Status Run(std::span<const GpuAttention> jobs,
                                 const std::shared_ptr<const GpuModel>& model, Place place,
                                 const Patience& patience);
  [[nodiscard]] Gpu::Stats GetStats() const;

 private:
  struct Call {
    size_t left = 0;     // pieces
    size_t waiting = 0;  // of them, those not begun
    absl::Status status;
    absl::Status refused;
  };
  struct Waiting {
    Piece piece;
    Call* call;
    absl::Status refused;  // where its batch says so: others of the call may run beside it
  };

  // Takes what one lane can do and does it; nothing, if patience ends before there is a lane.
  void RunBatch(const Patience& patience) SKETCHKV_REQUIRES(mu_);
  // Takes back what has not begun.
  void Withdraw(Call* call) SKETCHKV_REQUIRES(mu_);

  Lanes* const lanes_;
  BlockTables* const tables_;
  const std::chrono::microseconds delay_;

  mutable Mutex mu_;
  CondVar changed_;
  std::deque<Waiting> waiting_ SKETCHKV_GUARDED_BY(mu_);
  size_t running_ SKETCHKV_GUARDED_BY(mu_) = 0;  // batches, at most one a lane
  uint64_t calls_total_ SKETCHKV_GUARDED_BY(mu_) = 0;
  uint64_t batches_total_ SKETCHKV_GUARDED_BY(mu_) = 0;
  std::chrono::nanoseconds batch_time_ SKETCHKV_GUARDED_BY(mu_){0};
};

}  // namespace sketchkv::gpu
