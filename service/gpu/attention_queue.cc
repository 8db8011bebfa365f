#include "service/gpu/attention_queue.h"

#include <algorithm>

#include "kernels/cuda/launch.h"

namespace sketchkv::gpu {

absl::Status AttentionQueue::Run(std::span<const GpuAttention> jobs,
                                 const std::shared_ptr<const GpuModel>& model, Place place) {
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
                           .row_end = std::min(rows, row + cuda::kMaxQueries),
                           .refused = &call.refused},
                          &call});
      ++call.left;
    }
  }
  while (call.left > 0) {
    if (!waiting_.empty() && running_ < lanes_->size()) {
      RunBatch();
    } else {
      changed_.Wait(&mu_);
    }
  }
  return call.status.ok() ? call.refused : call.status;
}

void AttentionQueue::RunBatch() {
  ++running_;
  if (delay_.count() > 0) {
    const auto until = std::chrono::steady_clock::now() + delay_;
    while (changed_.WaitUntil(&mu_, until)) {
    }
  }
  if (waiting_.empty()) {  // others took it meanwhile
    --running_;
    return;
  }
  std::vector<Waiting> taken;
  absl::Status status;
  {
    // A batch runs without the mutex; `running_` has kept a lane for it.
    std::deque<Waiting> waiting;
    waiting.swap(waiting_);
    mu_.Unlock();
    const Lanes::Hold lane = lanes_->Take();
    AttentionBatch batch(&*lane, lane.index(), tables_);
    while (!waiting.empty() && batch.Add(waiting.front().piece)) {
      taken.push_back(waiting.front());
      waiting.pop_front();
    }
    if (!waiting.empty()) {
      MutexLock lock(&mu_);
      waiting_.insert(waiting_.begin(), waiting.begin(), waiting.end());
      changed_.NotifyAll();
    }
    const auto begin = std::chrono::steady_clock::now();
    status = lane->End(batch.Run());
    const auto took = std::chrono::steady_clock::now() - begin;
    mu_.Lock();
    ++batches_total_;
    batch_time_ += took;
  }
  for (const Waiting& done : taken) {
    --done.call->left;
    if (!status.ok()) done.call->status = status;
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
