#include "service/gpu/codec_queue.h"

#include <vector>

#include "kernels/base/status_macros.h"

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

absl::Status CodecQueue::Run(std::span<const Job> jobs) {
  std::deque<CodecPiece> pieces;
  std::vector<const Job*> job_of;  // [pieces]
  for (const Job& job : jobs) {
    for (size_t begin = 0; begin < job.part->cells.size(); begin = pieces.back().end()) {
      pieces.emplace_back(*job.model, *job.part, job.way, job.rows, begin, kPieceBytes);
      job_of.push_back(&job);
    }
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
  SKETCHKV_RETURN_IF_ERROR(call.status);
  for (size_t i = 0; i < pieces.size(); ++i) {
    absl::Status* const refused = job_of[i]->refused;
    if (refused != nullptr && refused->ok()) *refused = pieces[i].refused();
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
  call->waits = false;
  call->changed.NotifyOne();
}

void CodecQueue::WakeNext() {
  if (running_ == lanes_->size()) return;
  for (const Waiting& waiting : waiting_) {
    // Who runs a batch just now looks for itself afterwards, but that may take a while.
    if (waiting.call->waits) return Wake(waiting.call);
  }
}

void CodecQueue::Wait(Call* call) {
  call->waits = true;
  while (call->waits) call->changed.Wait(&mu_);
}

}  // namespace sketchkv::gpu
