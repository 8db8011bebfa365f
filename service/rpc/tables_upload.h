#pragma once

#include <grpcpp/alarm.h>
#include <grpcpp/support/server_callback.h>

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "kernels/layout.h"
#include "service/rpc/inflight.h"
#include "service/rpc/service_context.h"
#include "sketchkv/v1/models.pb.h"

namespace sketchkv {

// Models.UploadTables: one head's table a message in, the digest of all out. Each message is
// admitted before it is kept; the executor makes tables of them once all are here. An upload that
// is not complete in its time is ended and lets go of what it holds. Deletes itself.
class TablesUpload final : public grpc::ServerReadReactor<v1::UploadTablesRequest> {
 public:
  TablesUpload(ServiceContext* service, grpc::CallbackServerContext* call,
               v1::UploadTablesResponse* response);
  ~TablesUpload() override;

  void OnReadDone(bool ok) override;
  void OnCancel() override { cancelled_ = true; }
  void OnDone() override { delete this; }

 private:
  // Shared with the alarm, which may go off while the upload is being deleted. Whoever takes
  // `arriving` from true to false ends the call, once: until Finish the object is alive.
  struct Arrival {
    Mutex mu;
    bool arriving SKETCHKV_GUARDED_BY(mu) = true;
  };

  absl::Status Begin(const v1::UploadTablesRequest& first) SKETCHKV_REQUIRES(arrival_->mu);
  absl::Status Take(v1::UploadTablesRequest message) SKETCHKV_REQUIRES(arrival_->mu);
  absl::Status Admit(uint64_t bytes) SKETCHKV_REQUIRES(arrival_->mu);
  absl::Status CheckComplete() const SKETCHKV_REQUIRES(arrival_->mu);
  void SetAlarm() SKETCHKV_REQUIRES(arrival_->mu);
  // On the executor, when nothing arrives any more.
  absl::Status Store();
  void End(const absl::Status& status);

  ServiceContext* const service_;
  grpc::CallbackServerContext* const call_;
  v1::UploadTablesResponse* const response_;
  std::atomic<bool> cancelled_{false};
  v1::UploadTablesRequest request_;  // touched by the read under way only

  const std::shared_ptr<Arrival> arrival_;
  std::unique_ptr<grpc::Alarm> alarm_;
  // Under arrival_->mu while it arrives, then of whoever ends the call.
  bool begun_ = false;
  TimePoint deadline_;
  KvLayout layout_;
  std::map<uint32_t, v1::HeadTable> tables_;  // by layer * num_kv_heads + head
  uint64_t held_bytes_ = 0;                   // of tables_
  std::vector<InflightBytes::Hold> holds_;
};

}  // namespace sketchkv
