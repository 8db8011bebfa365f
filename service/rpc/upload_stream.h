#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "service/engine/part.h"
#include "service/rpc/item_stream.h"

namespace sketchkv {

// Chunks are joined up to this size as they arrive.
inline constexpr size_t kSmallChunkBytes = size_t{64} << 10;

// A part whose payload is arriving in chunks.
struct Upload {
  uint64_t expected_bytes = 0;
  std::optional<RawPartFormat> raw;  // of raw payloads: where a chunk may end
  // Of the chunks that are here, and of whatever else Open admitted: a header alone holds nothing.
  std::vector<InflightBytes::Hold> holds;
  TimePoint deadline;
  // Runs on the executor when the payload is complete.
  std::function<void(std::shared_ptr<Upload>)> run;

  std::vector<std::string> chunks;
  uint64_t received_bytes = 0;

  // The payload in one piece; moves where there was one chunk.
  [[nodiscard]] std::string TakePayload() {
    if (chunks.size() == 1) return std::move(chunks[0]);
    std::string payload;
    payload.reserve(received_bytes);
    for (std::string& chunk : chunks) {
      payload += chunk;
      chunk = std::string();
    }
    return payload;
  }
  // What `bytes` of a payload of `payload_bytes` may take in memory: twice as much where the payload
  // is in several chunks, which must be joined.
  [[nodiscard]] static uint64_t BytesHeld(uint64_t payload_bytes, uint64_t bytes) {
    return bytes < payload_bytes || payload_bytes > kMaxChunkBytes ? 2 * bytes : bytes;
  }
};

// An ItemStream whose items carry payload over several messages: the first has the header, those
// after it the same request_id and more bytes. One item arrives at a time.
template <typename Request, typename Response>
class UploadStream : public ItemStream<Request, Response> {
 public:
  using ItemStream<Request, Response>::ItemStream;

 protected:
  [[nodiscard]] virtual bool IsFirst(const Request& message) const = 0;
  // Checks the header. An error answers the item; its bytes are skipped.
  [[nodiscard]] virtual absl::StatusOr<std::shared_ptr<Upload>> Open(const Request& first) = 0;

 private:
  absl::Status OnMessage(Request message) final {
    const uint64_t request_id = message.request_id();
    if (IsFirst(message)) {
      Abandon();
      const absl::Status begun = this->BeginItem(request_id);
      if (!begun.ok()) return begun;
      current_id_ = request_id;
      absl::StatusOr<std::shared_ptr<Upload>> upload = Open(message);
      if (!upload.ok()) {
        this->AnswerError(request_id, upload.status());
        return absl::OkStatus();  // current_ stays empty: the rest of the item is skipped
      }
      current_ = *std::move(upload);
    } else if (request_id == 0 || request_id != current_id_) {
      return absl::InvalidArgumentError(absl::StrCat(
          "a message without a header has request_id ", request_id, "; the item under way is ",
          current_id_));
    }
    if (current_ == nullptr) return absl::OkStatus();
    Append(std::move(*message.mutable_payload()));
    return absl::OkStatus();
  }

  void Append(std::string chunk) {
    Upload& upload = *current_;
    upload.received_bytes += chunk.size();
    if (upload.received_bytes > upload.expected_bytes) {
      return Fail(absl::InvalidArgumentError(absl::StrCat("payload has at least ",
                                                          upload.received_bytes,
                                                          " bytes; the part needs ",
                                                          upload.expected_bytes)));
    }
    if (upload.raw.has_value() && !upload.raw->IsRowBoundary(upload.received_bytes)) {
      return Fail(absl::InvalidArgumentError(
          absl::StrCat("a chunk ends at byte ", upload.received_bytes,
                       " of the payload, inside a (head, token) row")));
    }
    if (!chunk.empty()) {
      absl::StatusOr<InflightBytes::Hold> hold = this->service().inflight->Acquire(
          Upload::BytesHeld(upload.expected_bytes, chunk.size()));
      if (!hold.ok()) return Fail(hold.status());
      upload.holds.push_back(*std::move(hold));
      // Many small chunks would cost more in bookkeeping than in bytes.
      if (!upload.chunks.empty() && upload.chunks.back().size() + chunk.size() <= kSmallChunkBytes) {
        upload.chunks.back() += chunk;
      } else {
        upload.chunks.push_back(std::move(chunk));
      }
    }
    if (upload.received_bytes < upload.expected_bytes) return;
    const uint64_t request_id = std::exchange(current_id_, 0);
    this->Submit(request_id, upload.deadline,
                 [upload = std::exchange(current_, nullptr)] { upload->run(upload); });
  }

  // Ends the item that is arriving; what else comes of it is skipped.
  void Fail(const absl::Status& status) {
    current_ = nullptr;
    this->AnswerError(current_id_, status);
  }

  // The peer went on without completing the item.
  void Abandon() {
    if (current_ == nullptr) return;
    const absl::Status status = absl::InvalidArgumentError(
        absl::StrCat("payload has ", current_->received_bytes, " bytes; the part needs ",
                     current_->expected_bytes));
    Fail(status);
  }
  void OnReadsDone() final { Abandon(); }

  // Touched by the read under way only.
  uint64_t current_id_ = 0;
  std::shared_ptr<Upload> current_;
};

}  // namespace sketchkv
