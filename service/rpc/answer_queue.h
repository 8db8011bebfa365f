#pragma once

#include <grpcpp/support/byte_buffer.h>

#include <cstddef>
#include <deque>
#include <utility>
#include <variant>

#include "proto/bulk_message.h"

namespace sketchkv {

// Whether a message may carry others of its kind, in its field `more`.
template <typename Message>
inline constexpr bool kHasMore = requires(Message message) {
  message.add_more();
};

// How many items or answers a message may carry in all.
inline constexpr size_t kMaxTogether = 64;

// What a stream has still to send, in order: finished messages, and answers which may yet travel in
// one message. Not thread-safe.
template <typename Response>
class AnswerQueue {
 public:
  // One message, finished on demand: the stream need not be locked for that.
  class Message {
   public:
    Message() = default;
    explicit Message(grpc::ByteBuffer buffer) : content_(std::move(buffer)) {}
    explicit Message(Response answer) : content_(std::move(answer)) {}

    [[nodiscard]] Response* answer() { return std::get_if<Response>(&content_); }
    [[nodiscard]] grpc::ByteBuffer Buffer() && {
      if (const Response* const one = answer()) return JoinMessage(*one, {});
      return std::move(std::get<grpc::ByteBuffer>(content_));
    }

   private:
    std::variant<grpc::ByteBuffer, Response> content_;
  };

  void Push(grpc::ByteBuffer message) { queue_.emplace_back(std::move(message)); }
  void Push(Response answer) { queue_.emplace_back(std::move(answer)); }
  // From now on answers may go together.
  void Join() { joins_ = true; }

  // The next message; there is one.
  [[nodiscard]] Message Pop() {
    Message message = std::move(queue_.front());
    queue_.pop_front();
    if constexpr (kHasMore<Response>) {
      if (joins_ && message.answer() != nullptr) AddMore(message.answer());
    }
    return message;
  }

  [[nodiscard]] bool empty() const { return queue_.empty(); }
  [[nodiscard]] size_t size() const { return queue_.size(); }
  void Clear() { queue_.clear(); }

 private:
  // Errors repeat what the caller has sent, which may be long.
  static constexpr size_t kEnoughBytes = size_t{64} << 10;

  void AddMore(Response* message) {
    size_t bytes = message->ByteSizeLong();
    for (size_t count = 1; count < kMaxTogether && bytes < kEnoughBytes && !queue_.empty();
         ++count) {
      Response* const next = queue_.front().answer();
      if (next == nullptr) return;
      bytes += next->ByteSizeLong();
      *message->add_more() = std::move(*next);
      queue_.pop_front();
    }
  }

  std::deque<Message> queue_;
  bool joins_ = false;
};

}  // namespace sketchkv
