#include "service/gpu/attention_queue.h"

#include <algorithm>
#include <utility>

#include "kernels/cuda/launch.h"

namespace sketchkv::gpu {

absl::Status AttentionQueue::Run(std::span<const GpuAttention> jobs,
                                 const std::shared_ptr<const GpuModel>& model, Place place,
                                 const Patience& patience) {
  Call call;
  MutexLock lock(&mu_);
  ++calls_total_;
  for (const GpuAttention& job : jobs) {
    const uint32_t rows = job.query.num_query_tokens * job.query.queries_per_kv_head;
    for (uint32_t row = 0; row < rows; row += cuda::kMaxQueries) {
      waiting_.push_back({{.job = &job,
                           .model = model,
                           .place = place,
                           .row_begin = row,
                           .row_end = std::min(rows, row + cuda::kMaxQueries)},
                          &call,
                          absl::OkStatus()});
      ++call.left;
      ++call.waiting;
    }
  }
  absl::Status left;  // why the caller has
  while (call.left > 0) {
    if (call.waiting == 0) {  // what has begun refers to the caller's memory
      changed_.Wait(&mu_);
    } else if (left = patience.Check(); !left.ok()) {
      Withdraw(&call);
    } else if (running_ < lanes_->size()) {
      RunBatch(patience);
    } else {
      patience.Wait(&changed_, &mu_);
    }
  }
  if (!call.status.ok()) return call.status;
  return left.ok() ? call.refused : left;
}

void AttentionQueue::Withdraw(Call* call) {
  std::erase_if(waiting_, [call](const Waiting& waiting) { return waiting.call == call; });
  call->left -= std::exchange(call->waiting, 0);
}

void AttentionQueue::RunBatch(const Patience& patience) {
  ++running_;
  if (delay_.count() > 0) {
    const auto until = std::chrono::steady_clock::now() + delay_;
    while (changed_.WaitUntil(&mu_, until)) {
    }
  }
  std::deque<Waiting> taken;  // each stays where it is
  absl::Status status;
  {
    mu_.Unlock();
    const absl::StatusOr<Lanes::Hold> lane = lanes_->Take(patience);
    mu_.Lock();
    if (!lane.ok() || waiting_.empty()) {  // others took it meanwhile
      --running_;
      changed_.NotifyAll();
      return;
    }
    AttentionBatch batch(&**lane, lane->index(), tables_);
    while (!waiting_.empty()) {
      Waiting& next = taken.emplace_back(waiting_.front());
      next.piece.refused = &next.refused;
      if (!batch.Add(next.piece)) {
        taken.pop_back();
        break;
      }
      --next.call->waiting;
      waiting_.pop_front();
    }
    if (!waiting_.empty()) changed_.NotifyAll();
    // A batch runs without the mutex; `running_` has kept a lane for it.
    mu_.Unlock();
    const auto begin = std::chrono::steady_clock::now();
    status = (*lane)->End(batch.Run());
    const auto took = std::chrono::steady_clock::now() - begin;
    mu_.Lock();
    ++batches_total_;
    batch_time_ += took;
  }
  for (const Waiting& done : taken) {
    --done.call->left;
    if (!status.ok()) done.call->status = status;
    done.call->refused.Update(done.refused);
  }
  --running_;
  changed_.NotifyAll();
}

Gpu::Stats AttentionQueue::GetStats() const {
  MutexLock lock(&mu_);
  return {.attention_calls_total = calls_total_,
          .attention_batches_total = batches_total_,
          .attention_microseconds_total = static_cast<uint64_t>(
              std::chrono::duration_cast<std::chrono::microseconds>(batch_time_).count())};
}

}  // namespace sketchkv::gpu
