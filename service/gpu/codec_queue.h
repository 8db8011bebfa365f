#pragma once

#include <cstddef>
#include <deque>

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

  // Encodes rows on the card to the part's cells, or decodes cells to them; checksums either way.
  // Errors as Gpu::Encode; what the card refuses of one part is no error of others.
  [[nodiscard]] absl::Status Run(const GpuModel& model, const GpuPart& part, CodecWay way,
                                 const CodecRows& rows);

 private:
  struct Call {
    size_t left = 0;  // pieces
    absl::Status status;
    bool woken = false;
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
