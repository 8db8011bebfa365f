#include "service/gpu/codec_queue.h"

#include <vector>

namespace sketchkv::gpu {
namespace {

// Of the staging area; a single cell may have more.
constexpr size_t kPieceBytes = Lane::kStagingBytes / 2;

absl::Status RunOn(Lane* lane, CodecBatch* batch) {
  absl::Status status = batch->Start();
  if (status.ok()) status = lane->Wait();
  if (status.ok()) batch->Finish();
  return lane->End(status);
}

}  // namespace

absl::Status CodecQueue::Run(const GpuModel& model, const GpuPart& part, CodecWay way,
                             const CodecRows& rows) {
  std::deque<CodecPiece> pieces;
  for (size_t begin = 0; begin < part.cells.size(); begin = pieces.back().end()) {
    pieces.emplace_back(model, part, way, rows, begin, kPieceBytes);
  }
  Call call{.left = pieces.size()};
  {
    MutexLock lock(&mu_);
    for (CodecPiece& piece : pieces) waiting_.push_back({&piece, &call});
    while (call.left > 0) {
      if (!waiting_.empty() && running_ < lanes_->size()) {
        RunBatch();
      } else {
        Wait(&call);
      }
    }
  }
  if (!call.status.ok()) return call.status;
  for (const CodecPiece& piece : pieces) {
    if (!piece.refused().ok()) return piece.refused();
  }
  return absl::OkStatus();
}

void CodecQueue::RunBatch() {
  ++running_;
  std::vector<Waiting> taken;
  absl::Status status;
  {
    // A batch runs without the mutex; `running_` has kept a lane for it.
    std::deque<Waiting> waiting;
    waiting.swap(waiting_);
    mu_.Unlock();
    const Lanes::Hold lane = lanes_->Take();
    CodecBatch batch(&*lane, 0, Lane::kStagingBytes);
    while (!waiting.empty() && batch.Add(waiting.front().piece)) {
      taken.push_back(waiting.front());
      waiting.pop_front();
    }
    if (!waiting.empty()) {
      MutexLock lock(&mu_);
      waiting_.insert(waiting_.begin(), waiting.begin(), waiting.end());
      WakeNext();
    }
    status = RunOn(&*lane, &batch);
    mu_.Lock();
  }
  --running_;
  for (const Waiting& done : taken) {
    if (!status.ok()) done.call->status = status;
    if (--done.call->left == 0) Wake(done.call);
  }
  WakeNext();
}

void CodecQueue::Wake(Call* call) {
  call->woken = true;
  call->changed.NotifyOne();
}

void CodecQueue::WakeNext() {
  if (!waiting_.empty() && running_ < lanes_->size()) Wake(waiting_.front().call);
}

void CodecQueue::Wait(Call* call) {
  while (!call->woken) call->changed.Wait(&mu_);
  call->woken = false;
}

}  // namespace sketchkv::gpu
