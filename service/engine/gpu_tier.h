#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "kernels/base/mutex.h"
#include "service/engine/attention_target.h"
#include "service/engine/gpu.h"
#include "service/engine/model_registry.h"
#include "service/pool/block_pool.h"

namespace sketchkv {

// Keeps the pool's gpu tier: copies blocks between host and card, and closes the tier when the card
// fails. Thread-safe.
class GpuTier {
 public:
  // All outlive it.
  GpuTier(Gpu* gpu, BlockPool* pool, ModelRegistry* models)
      : gpu_(gpu), pool_(pool), models_(models) {}

  [[nodiscard]] Gpu* gpu() { return gpu_; }
  // Whether blocks of this model may lie on the card. Asked before blocks are pinned: once it says
  // that the card has failed, no pin shows a block whose bytes were there alone.
  [[nodiscard]] bool Serves(const std::shared_ptr<const Model>& model);
  [[nodiscard]] bool failed() const { return failed_; }

  // Copies cells that were written to a host slot to the gpu slot. If that fails so has the card,
  // and no block has a copy there.
  void CopyUp(const Model& model, std::span<const WriteHandle::Cell> cells,
              std::span<const std::byte> host_slot, std::byte* gpu_slot);
  // Makes the host's bytes of a pinned block those that the card has. NOT_FOUND: it was deleted, or
  // the card failed and the block is lost; DATA_LOSS: what came from the card is damaged, and the
  // block dropped.
  [[nodiscard]] absl::Status WriteBack(const ReadPins& pins, size_t index);
  // Drops a pinned block whose copy on the card is not what was stored.
  void VerifyCopy(const Model& model, const BlockView& block);
  // Blocks of the target that the host answered are to be copied to the card.
  void NoteUse(const AttentionTarget& target);

  // What goes on in the background, every few milliseconds: asks the card how it is, writes back
  // what is there alone, and promotes what was used.
  void Maintain();

  // After UNAVAILABLE of the card: from now on the host answers.
  void Fail(const absl::Status& why);

  struct Stats {
    bool failed = false;
    absl::Status why;  // it failed
    uint64_t lost_blocks = 0;
  };
  [[nodiscard]] Stats GetStats();

 private:
  void WriteBackStale();
  void Promote();

  // Constant after construction.
  Gpu* const gpu_;
  BlockPool* const pool_;
  ModelRegistry* const models_;

  std::atomic<bool> failed_{false};
  std::atomic<uint64_t> lost_blocks_{0};
  // Blocks are noted until there are enough for one Maintain: a decode loop asks for the same ones
  // thousands of times a second.
  std::atomic<bool> wants_notes_{true};
  Mutex mu_;
  absl::flat_hash_set<BlockKey> noted_ SKETCHKV_GUARDED_BY(mu_);
  std::vector<BlockKey> order_ SKETCHKV_GUARDED_BY(mu_);  // noted_, root first
  absl::Status why_ SKETCHKV_GUARDED_BY(mu_);
  Mutex write_back_mu_;  // one at a time: two would write the same bytes to the same place
  Mutex fail_mu_;
};

}  // namespace sketchkv
