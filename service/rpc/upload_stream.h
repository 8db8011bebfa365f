#pragma once

#include <grpcpp/alarm.h>

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"
#include "service/engine/part.h"
#include "service/rpc/item_stream.h"

namespace sketchkv {

// Smaller chunks, and those that came in many small pieces, are copied and joined as they arrive:
// each piece would cost more in bookkeeping, and in gRPC's read buffers that it keeps, than in
// bytes.
inline constexpr size_t kSmallChunkBytes = size_t{64} << 10;
inline constexpr size_t kSmallPieceBytes = size_t{1} << 10;

// A part whose payload is arriving in chunks.
class Upload {
 public:
  uint64_t expected_bytes = 0;
  std::optional<RawPartFormat> raw;  // of raw payloads: where a chunk may end
  // Of the chunks that are here, and of whatever else Open admitted: a header alone holds nothing.
  std::vector<InflightBytes::Hold> holds;
  TimePoint deadline;
  // Runs when the payload is complete: on the executor, or at once on gRPC's thread if it only
  // hands the item on.
  std::function<void(std::shared_ptr<Upload>)> run;
  bool hands_on = false;
  uint64_t received_bytes = 0;
  uint64_t checksum = 0;  // what the last message says the payload has

  void Add(const Payload& chunk, InflightBytes::Hold hold) {
    holds.push_back(std::move(hold));
    const bool large = chunk.size() >= kSmallChunkBytes &&
                       chunk.size() >= chunk.fragments().size() * kSmallPieceBytes;
    if (large || joined_.size() + chunk.size() > kSmallChunkBytes) Flush();
    if (large) return payload_.Append(chunk);
    const size_t begin = joined_.size();
    joined_.resize(begin + chunk.size());
    chunk.CopyTo(0, std::span(joined_).subspan(begin));
  }

  // The whole payload, which lies elsewhere and does not travel.
  void SetWhole(const Payload& payload) {
    payload_ = payload;
    received_bytes = payload.size();
  }

  // What came so far; large chunks still lie in gRPC's slices.
  [[nodiscard]] Payload TakePayload() {
    Flush();
    return std::exchange(payload_, Payload());
  }

 private:
  void Flush() {
    if (joined_.empty()) return;
    auto owned = std::make_shared<const std::vector<std::byte>>(std::exchange(joined_, {}));
    payload_.Append(*owned, owned);
  }

  Payload payload_;
  std::vector<std::byte> joined_;  // small chunks, behind payload_
};

// An ItemStream whose items carry payload over several messages: the first has the header, those
// after it the same request_id and more bytes. One item arrives at a time; one that does not arrive
// in its time is answered and lets go of what it holds.
template <typename Request, typename Response>
class UploadStream : public ItemStream<Request, Response> {
 public:
  UploadStream(ServiceContext* service, grpc::CallbackServerContext* call)
      : ItemStream<Request, Response>(service, call), arrival_(std::make_shared<Arrival>()) {
    MutexLock lock(&arrival_->mu);
    arrival_->stream = this;
  }
  ~UploadStream() override {
    MutexLock lock(&arrival_->mu);
    arrival_->stream = nullptr;
  }

 protected:
  [[nodiscard]] virtual bool IsFirst(const Request& message) const = 0;
  // Checks the header. An error answers the item; its bytes are skipped.
  [[nodiscard]] virtual absl::StatusOr<std::shared_ptr<Upload>> Open(const Request& first) = 0;
  // Of an item that came in another's message: that it needs no further one. An error answers it.
  [[nodiscard]] virtual absl::Status CheckWhole(const Request&) const { return absl::OkStatus(); }
  // All items of a message have begun: what was handed on may be taken up.
  virtual void OnMessageTaken() {}

 private:
  // What arrives, shared with the alarm, which may go off while the stream is being deleted.
  struct Arrival {
    Mutex mu;
    UploadStream* stream SKETCHKV_GUARDED_BY(mu) = nullptr;  // null once it is gone
    uint64_t id SKETCHKV_GUARDED_BY(mu) = 0;
    std::shared_ptr<Upload> upload SKETCHKV_GUARDED_BY(mu);
  };

  absl::Status OnMessage(Request message, Payload chunk) final {
    MutexLock lock(&arrival_->mu);
    if constexpr (kHasMore<Request>) SKETCHKV_RETURN_IF_ERROR(CheckMore(message));
    absl::Status status = Take(message, chunk, /*whole=*/false);
    if constexpr (kHasMore<Request>) {
      if (message.more_size() > 0) this->JoinAnswers();
      for (int i = 0; i < message.more_size() && status.ok(); ++i) {
        status = Take(message.more(i), Payload(), /*whole=*/true);
      }
    }
    OnMessageTaken();
    return status;
  }

  static absl::Status CheckMore(const Request& message) {
    constexpr int kMaxMore = kMaxTogether - 1;
    if (message.more_size() > kMaxMore) {
      return absl::InvalidArgumentError(
          absl::StrCat("more has ", message.more_size(), " items, of at most ", kMaxMore));
    }
    for (int i = 0; i < message.more_size(); ++i) {
      if (message.more(i).more_size() == 0) continue;
      return absl::InvalidArgumentError(absl::StrCat("more[", i, "].more has ",
                                                     message.more(i).more_size(),
                                                     " items; only a message itself has more"));
    }
    return absl::OkStatus();
  }

  // One item's share of a message; `whole`: there must be nothing else of the item.
  absl::Status Take(const Request& message, const Payload& chunk, bool whole)
      SKETCHKV_REQUIRES(arrival_->mu) {
    const uint64_t request_id = message.request_id();
    if (IsFirst(message)) {
      Abandon();
      SKETCHKV_RETURN_IF_ERROR(this->BeginItem(request_id));
      arrival_->id = request_id;
      alarm_ = nullptr;  // of an item that was late
      absl::StatusOr<std::shared_ptr<Upload>> upload = OpenItem(message, whole);
      if (!upload.ok()) {
        this->AnswerError(request_id, upload.status());
        return absl::OkStatus();  // no upload: the rest of the item is skipped
      }
      arrival_->upload = *std::move(upload);
    } else if (whole || request_id == 0 || request_id != arrival_->id) {
      return absl::InvalidArgumentError(absl::StrCat("a message without a header has request_id ",
                                                     request_id, "; the item under way is ",
                                                     arrival_->id));
    }
    if (arrival_->upload == nullptr) return absl::OkStatus();
    arrival_->upload->checksum = message.checksum();
    Append(chunk);
    // Items that come in one message never need it.
    if (arrival_->upload != nullptr && alarm_ == nullptr) SetAlarm();
    return absl::OkStatus();
  }

  absl::StatusOr<std::shared_ptr<Upload>> OpenItem(const Request& first, bool whole) {
    if (whole) SKETCHKV_RETURN_IF_ERROR(CheckWhole(first));
    return Open(first);
  }

  void Append(const Payload& chunk) SKETCHKV_REQUIRES(arrival_->mu) {
    Upload& upload = *arrival_->upload;
    upload.received_bytes += chunk.size();
    if (upload.received_bytes > upload.expected_bytes) {
      return Fail(absl::InvalidArgumentError(
          absl::StrCat("payload has at least ", upload.received_bytes, " bytes; the part needs ",
                       upload.expected_bytes)));
    }
    if (upload.raw.has_value() && !upload.raw->IsRowBoundary(upload.received_bytes)) {
      return Fail(
          absl::InvalidArgumentError(absl::StrCat("a chunk ends at byte ", upload.received_bytes,
                                                  " of the payload, inside a (head, token) row")));
    }
    if (chunk.size() > 0) {
      absl::StatusOr<InflightBytes::Hold> hold = this->service().inflight->Acquire(chunk.size());
      if (!hold.ok()) return Fail(hold.status());
      upload.Add(chunk, *std::move(hold));
    }
    if (upload.received_bytes < upload.expected_bytes) return;
    const uint64_t request_id = std::exchange(arrival_->id, 0);
    alarm_ = nullptr;
    const std::shared_ptr<Upload> complete = std::exchange(arrival_->upload, nullptr);
    if (complete->hands_on) return complete->run(complete);
    this->Submit(request_id, complete->deadline, [complete] { complete->run(complete); });
  }

  // Ends the item that is arriving; what else comes of it is skipped.
  void Fail(const absl::Status& status) SKETCHKV_REQUIRES(arrival_->mu) {
    arrival_->upload = nullptr;
    alarm_ = nullptr;
    this->AnswerError(arrival_->id, status);
  }

  // The peer went on without completing the item.
  void Abandon() SKETCHKV_REQUIRES(arrival_->mu) {
    if (arrival_->upload == nullptr) return;
    Fail(absl::InvalidArgumentError(absl::StrCat("payload has ", arrival_->upload->received_bytes,
                                                 " bytes; the part needs ",
                                                 arrival_->upload->expected_bytes)));
  }
  void OnReadsDone() final {
    MutexLock lock(&arrival_->mu);
    Abandon();
  }

  void SetAlarm() SKETCHKV_REQUIRES(arrival_->mu) {
    const auto left = arrival_->upload->deadline - this->service().clock->Now();
    const auto when = std::chrono::system_clock::now() +
                      std::chrono::duration_cast<std::chrono::system_clock::duration>(left);
    alarm_ = std::make_unique<grpc::Alarm>();
    alarm_->Set(when, [arrival = arrival_, request_id = arrival_->id](bool expired) {
      if (!expired) return;  // the item ended before
      MutexLock lock(&arrival->mu);
      if (arrival->stream == nullptr || arrival->upload == nullptr || arrival->id != request_id) {
        return;
      }
      const absl::Status late = absl::DeadlineExceededError(
          absl::StrCat("after its time the payload has ", arrival->upload->received_bytes,
                       " bytes; the part needs ", arrival->upload->expected_bytes));
      // Not Fail: the alarm must not be destroyed by itself. The stream may end with this answer,
      // but is deleted only after the lock is released.
      arrival->upload = nullptr;
      arrival->stream->AnswerError(request_id, late);
    });
  }

  const std::shared_ptr<Arrival> arrival_;
  std::unique_ptr<grpc::Alarm> alarm_;  // of the item that is arriving; under arrival_->mu
};

}  // namespace sketchkv
