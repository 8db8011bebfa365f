#pragma once

#include <cstddef>
#include <deque>
#include <memory>
#include <span>

#include "absl/status/status.h"
#include "kernels/base/mutex.h"
#include "service/gpu/codec_batch.h"

namespace sketchkv::gpu {

// Brings parts of all callers to the card. There is no thread of its own: whoever waits while a
// lane is idle takes what is waiting, its own and others', so that what arrives while the lanes are
// busy shares launches and copies. Thread-safe.
class CodecQueue {
 public:
  // Outlives it.
  explicit CodecQueue(Lanes* lanes) : lanes_(lanes) {}

  struct Job {
    std::shared_ptr<const GpuModel> model;
    const GpuPart* part = nullptr;
    CodecWay way = CodecWay::kEncode;
    CodecRows rows;
    absl::Status* refused = nullptr;  // of what is encoded, as GpuEncoding::refused
  };
  // Encodes rows on the card to the parts' cells, or decodes cells to them; checksums either way.
  // Waits for it. UNAVAILABLE: the card failed, during this batch or an earlier one.
  [[nodiscard]] absl::Status Run(std::span<const Job> jobs);

 private:
  struct Call {
    size_t left = 0;  // pieces
    absl::Status status;
    bool waits = false;  // nobody has told it yet
    CondVar changed;
  };
  struct Waiting {
    CodecPiece* piece;
    Call* call;
  };

  // Takes what one lane can do and does it.
  void RunBatch() SKETCHKV_REQUIRES(mu_);
  // Until there is something to do for the call, or it is done.
  void Wait(Call* call) SKETCHKV_REQUIRES(mu_);
  static void Wake(Call* call);
  // Where somebody waits and a lane is idle, one who waits is told.
  void WakeNext() SKETCHKV_REQUIRES(mu_);

  Lanes* const lanes_;

  Mutex mu_;
  std::deque<Waiting> waiting_ SKETCHKV_GUARDED_BY(mu_);
  size_t running_ SKETCHKV_GUARDED_BY(mu_) = 0;  // batches, at most one a lane
};

}  // namespace sketchkv::gpu
