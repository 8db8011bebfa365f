#pragma once

#include <grpcpp/support/byte_buffer.h>

#include <algorithm>
#include <functional>
#include <optional>
#include <utility>

#include "absl/status/status.h"
#include "proto/bulk_message.h"
#include "service/engine/part.h"
#include "service/rpc/convert.h"
#include "service/rpc/inflight.h"
#include "service/rpc/payload_slices.h"
#include "service/rpc/service_context.h"
#include "service/rpc/status.h"

namespace sketchkv {

// Makes the messages that carry a part back: the layout in the first, status and checksum in the
// last, raw chunks ending at the end of a row. Each is sent as soon as its bytes are there, the
// last when Finish says that all is well. The payload is referred to, not copied; `hold` lives as
// long as gRPC needs it.
template <typename Response>
class PartAnswer final : public PartSink {
 public:
  PartAnswer(uint64_t request_id, InflightBytes::Hold hold,
             std::function<void(grpc::ByteBuffer)> send)
      : request_id_(request_id), hold_(std::move(hold)), send_(std::move(send)) {}

  void Begin(const PartLayout& layout, const std::optional<RawPartFormat>& raw,
             uint64_t payload_bytes) override {
    next_ = NewMessage();
    *next_.mutable_part() = ToProto(layout, !raw.has_value());
    raw_ = raw;
    payload_bytes_ = payload_bytes;
  }

  void Append(const Payload& bytes) override {
    unsent_.Append(bytes);
    // The last chunk waits for the checksum.
    while (unsent_.size() > kMaxChunkBytes ||
           (unsent_.size() > 0 && sent_bytes_ + unsent_.size() < payload_bytes_)) {
      const uint64_t end = ChunkBytes();
      send_(JoinMessage(std::exchange(next_, NewMessage()), SlicesOf(unsent_.Sub(0, end), hold_)));
      unsent_ = unsent_.Sub(end, unsent_.size());
      sent_bytes_ += end;
    }
  }

  // The last message.
  [[nodiscard]] grpc::ByteBuffer Finish(uint64_t checksum) {
    *next_.mutable_status() = ToItemStatus(absl::OkStatus());
    next_.set_checksum(checksum);
    return JoinMessage(next_, SlicesOf(unsent_, hold_));
  }

 private:
  [[nodiscard]] Response NewMessage() const {
    Response message;
    message.set_request_id(request_id_);
    return message;
  }
  // How much of unsent_ the next message carries.
  [[nodiscard]] uint64_t ChunkBytes() const {
    if (unsent_.size() <= kMaxChunkBytes) return unsent_.size();
    if (!raw_.has_value()) return kMaxChunkBytes;
    return raw_->FloorToRow(sent_bytes_ + kMaxChunkBytes) - sent_bytes_;
  }

  const uint64_t request_id_;
  const InflightBytes::Hold hold_;
  const std::function<void(grpc::ByteBuffer)> send_;
  std::optional<RawPartFormat> raw_;
  uint64_t payload_bytes_ = 0;
  uint64_t sent_bytes_ = 0;
  Payload unsent_;
  Response next_;
};

}  // namespace sketchkv
