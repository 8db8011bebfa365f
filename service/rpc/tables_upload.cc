#include "service/rpc/tables_upload.h"

#include <chrono>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"
#include "service/rpc/convert.h"
#include "service/rpc/convert_tables.h"
#include "service/rpc/status.h"

namespace sketchkv {
namespace {

// Of a table in memory: as a message and as numbers, or as numbers and in the text of their digest.
constexpr uint64_t kCopies = 2;

// Tables that are too large are so however often they are sent.
absl::Status TooLargeForever(const absl::Status& status) {
  return absl::IsResourceExhausted(status) ? NeverFitsError(status.message()) : status;
}

}  // namespace

TablesUpload::TablesUpload(ServiceContext* service, grpc::CallbackServerContext* call,
                           v1::UploadTablesResponse* response)
    : service_(service), call_(call), response_(response), arrival_(std::make_shared<Arrival>()) {
  StartRead(&request_);
}

TablesUpload::~TablesUpload() = default;

void TablesUpload::OnReadDone(bool ok) {
  absl::Status status;
  {
    MutexLock lock(&arrival_->mu);
    if (!arrival_->arriving) return;  // the alarm has ended the call
    status = ok ? Take(std::exchange(request_, {})) : CheckComplete();
    // Under the lock: once the alarm has ended the call nothing more may be started.
    if (ok && status.ok()) return StartRead(&request_);
    arrival_->arriving = false;
    alarm_ = nullptr;
  }
  if (!status.ok()) return End(status);
  const absl::Status submitted =
      service_->executor->Submit({.run = [this] { End(Store()); },
                                  .drop = [this](const absl::Status& why) { End(why); },
                                  .deadline = deadline_,
                                  .cancelled = [this] { return cancelled_.load(); }});
  if (!submitted.ok()) End(submitted);
}

absl::Status TablesUpload::Begin(const v1::UploadTablesRequest& first) {
  if (!first.has_layout()) {
    return absl::InvalidArgumentError("layout is not set in the first message");
  }
  SKETCHKV_ASSIGN_OR_RETURN(layout_, FromProto(first.layout()));
  SKETCHKV_RETURN_IF_ERROR(layout_.Validate());
  begun_ = true;
  deadline_ = service_->Deadline(first.timeout_ms(), *call_);
  SetAlarm();
  return absl::OkStatus();
}

absl::Status TablesUpload::Take(v1::UploadTablesRequest message) {
  if (!begun_) {
    SKETCHKV_RETURN_IF_ERROR(Begin(message));
  } else if (message.has_layout()) {
    return absl::InvalidArgumentError(
        absl::StrCat("layout is set in message ", tables_.size(), ", not only in message 0"));
  }
  if (!message.has_table()) {
    return absl::InvalidArgumentError(absl::StrCat("table is not set in message ", tables_.size()));
  }
  const uint32_t layer = message.table().layer(), head = message.table().head();
  if (layer >= layout_.num_layers) {
    return absl::InvalidArgumentError(
        absl::StrCat("table.layer is ", layer, "; the layout has ", layout_.num_layers));
  }
  if (head >= layout_.num_kv_heads) {
    return absl::InvalidArgumentError(
        absl::StrCat("table.head is ", head, "; the layout has ", layout_.num_kv_heads));
  }
  const uint32_t index = layer * layout_.num_kv_heads + head;
  if (tables_.count(index) != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("table of layer ", layer, " head ", head, " comes twice"));
  }
  SKETCHKV_RETURN_IF_ERROR(Admit(message.table().SpaceUsedLong()));
  tables_[index] = std::move(*message.mutable_table());
  return absl::OkStatus();
}

absl::Status TablesUpload::Admit(uint64_t bytes) {
  held_bytes_ += bytes;
  SKETCHKV_RETURN_IF_ERROR(
      TooLargeForever(service_->engine->models().tables().CheckFits(held_bytes_)));
  SKETCHKV_RETURN_IF_ERROR(service_->inflight->CheckFits(kCopies * held_bytes_));
  SKETCHKV_ASSIGN_OR_RETURN(InflightBytes::Hold hold, service_->inflight->Acquire(kCopies * bytes));
  holds_.push_back(std::move(hold));
  return absl::OkStatus();
}

absl::Status TablesUpload::CheckComplete() const {
  if (!begun_) return absl::InvalidArgumentError("the upload has 0 messages; it needs 1 a head");
  const uint32_t wanted = layout_.num_layers * layout_.num_kv_heads;
  if (tables_.size() == wanted) return absl::OkStatus();
  uint32_t missing = 0;
  while (tables_.count(missing) != 0) ++missing;
  return absl::InvalidArgumentError(absl::StrCat(
      "table of layer ", missing / layout_.num_kv_heads, " head ", missing % layout_.num_kv_heads,
      " is missing: ", tables_.size(), " came, the layout has ", wanted));
}

void TablesUpload::SetAlarm() {
  const auto left = deadline_ - service_->clock->Now();
  const auto when = std::chrono::system_clock::now() +
                    std::chrono::duration_cast<std::chrono::system_clock::duration>(left);
  alarm_ = std::make_unique<grpc::Alarm>();
  alarm_->Set(when, [this, arrival = arrival_](bool expired) {
    if (!expired) return;  // all came before
    absl::Status late;
    {
      MutexLock lock(&arrival->mu);
      if (!arrival->arriving) return;
      arrival->arriving = false;
      late = absl::DeadlineExceededError(absl::StrCat("after its time ", tables_.size(),
                                                      " tables are here; the layout has ",
                                                      layout_.num_layers * layout_.num_kv_heads));
    }
    End(late);
  });
}

absl::Status TablesUpload::Store() {
  std::vector<HeadTable> heads;
  while (!tables_.empty()) {  // each message goes once its numbers are here
    SKETCHKV_ASSIGN_OR_RETURN(HeadTable head, FromProto(tables_.begin()->second));
    heads.push_back(std::move(head));
    tables_.erase(tables_.begin());
  }
  absl::StatusOr<StoredTables> stored =
      service_->engine->models().tables().Add(kDefaultTenant, layout_, std::move(heads));
  if (!stored.ok()) return TooLargeForever(stored.status());
  response_->set_tables_digest(std::string(stored->digest.begin(), stored->digest.end()));
  response_->set_size_bytes(stored->tables->size_bytes());
  return absl::OkStatus();
}

void TablesUpload::End(const absl::Status& status) {
  tables_.clear();
  holds_.clear();
  AddRetryHint(status, call_);
  Finish(ToGrpcStatus(status));
}

}  // namespace sketchkv
