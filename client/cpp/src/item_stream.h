#pragma once

#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/sync_stream.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "client/cpp/src/core.h"
#include "client/cpp/src/status.h"
#include "kernels/base/mutex.h"
#include "proto/bulk_message.h"

namespace sketchkv::client {

// Whether a message may carry others of its kind, in its field `more`.
template <typename Message>
inline constexpr bool kHasMore = requires(Message message) {
  message.add_more();
};

// One item of a Put, Get, Encode or Decode stream. Fill is called by the writing thread, Take and
// Complete by the reading one.
template <typename Request, typename Response>
class StreamItem {
 public:
  virtual ~StreamItem() = default;

  // Before each round: nothing is sent or received yet.
  virtual void Reset() = 0;
  // Fills message number `index`, request_id and timeout_ms excepted, and its bulk field; true when
  // more follow. An error is possible for message 0 only, ends the item and sends nothing of it.
  [[nodiscard]] virtual absl::StatusOr<bool> Fill(size_t index, Request* request,
                                                  std::vector<grpc::Slice>* bulk) = 0;
  // Whether Fill will make one message: such an item alone needs no thread to write it.
  [[nodiscard]] virtual bool IsOneMessage() const = 0;
  // Whether Fill waits for nothing and makes little: what was written before may wait for its
  // message and travel with it. To send small messages one by one costs more than the rest of them.
  [[nodiscard]] virtual bool FillsAtOnce() const { return false; }
  // Takes a message that carries no error; `bulk` is its bulk field.
  [[nodiscard]] virtual absl::Status Take(const Response& response,
                                          const std::vector<grpc::Slice>& bulk) = 0;
  // After Take of the last message of an item, `last`, which the server calls OK.
  [[nodiscard]] virtual absl::Status Complete(const Response& last) = 0;

  // The item is done, answered by the server or not: what was lent to it may be taken back. Any
  // thread.
  virtual void Ended(bool answered) {}

  bool done = false;
  Outcome outcome;
};

// Messages travel as gRPC's own buffers, so that their bulk fields are not copied by protobuf.
using RawStream = grpc::ClientReaderWriter<grpc::ByteBuffer, grpc::ByteBuffer>;

// Opens the bidirectional method of this path ("/package.Service/Method").
[[nodiscard]] std::unique_ptr<RawStream> OpenStream(ClientCore* core, const char* method,
                                                    grpc::ClientContext* context);

// One stream over which all items not done go out, one after another, while answers come in, in any
// order. Writing and reading run at the same time: were one to wait for the other, both sides' flow
// control windows could fill. After Run every item is done.
template <typename Request, typename Response>
class StreamRound {
 public:
  using Item = StreamItem<Request, Response>;

  StreamRound(std::unique_ptr<RawStream> stream, std::span<Item* const> items, TimePoint deadline)
      : stream_(std::move(stream)), items_(items), deadline_(deadline) {}

  void Run() {
    if (items_.size() == 1 && items_[0]->IsOneMessage()) {
      WriteAll();
      ReadAll();
    } else {
      std::thread writer([this] { WriteAll(); });
      ReadAll();
      writer.join();
    }
    absl::Status ended = FromGrpc(stream_->Finish());
    if (ended.ok()) ended = absl::InternalError("the server ended the stream without an answer");
    for (Item* item : items_) {
      if (!item->done) End(item, {ended, 0}, /*answered=*/false);
    }
  }

 private:
  // How many items go in one message, at most: what a server's task takes at a time.
  static constexpr size_t kMaxTogether = 16;

  void WriteAll() {
    for (size_t i = 0; i < items_.size(); ++i) {
      if (!WriteItem(i)) return;
      const bool together =
          items_[i]->FillsAtOnce() && i + 1 < items_.size() && items_[i + 1]->FillsAtOnce();
      if (!together && !WriteTogether()) return;
    }
    stream_->WritesDone();
  }

  // False when the stream is broken; Finish says why.
  bool WriteItem(size_t i) {
    bool more = true;
    for (size_t index = 0; more; ++index) {
      Request request;
      std::vector<grpc::Slice> bulk;
      absl::StatusOr<bool> filled = items_[i]->Fill(index, &request, &bulk);
      if (!filled.ok()) {
        End(items_[i], {filled.status(), 0}, /*answered=*/true);  // nothing was asked
        return true;
      }
      more = *filled;
      request.set_request_id(i + 1);
      if (index == 0) request.set_timeout_ms(RemainingMs(deadline_));
      if constexpr (kHasMore<Request>) {
        if (index == 0 && !more && bulk.empty()) return Add(std::move(request));
        if (!WriteTogether()) return false;
      }
      grpc::WriteOptions options;
      if (!more && i + 1 < items_.size() && items_[i + 1]->FillsAtOnce()) options.set_buffer_hint();
      if (!stream_->Write(JoinMessage(request, std::move(bulk)), options)) return false;
    }
    return true;
  }

  // An item that is whole in one message, of which nothing else travels.
  bool Add(Request request) {
    if (num_together_++ == 0) {
      together_ = std::move(request);
    } else {
      *together_.add_more() = std::move(request);
    }
    return num_together_ < kMaxTogether || WriteTogether();
  }
  bool WriteTogether() {
    if (std::exchange(num_together_, 0) == 0) return true;
    return stream_->Write(JoinMessage(together_, {}), grpc::WriteOptions());
  }

  void ReadAll() {
    grpc::ByteBuffer buffer;
    std::vector<grpc::Slice> bulk;
    while (stream_->Read(&buffer)) {
      Response response;
      // What is no message names no item: those it may have been for end with the stream.
      const bool parsed = SplitMessage(buffer, &response, &bulk);
      buffer.Clear();
      if (!parsed) continue;
      TakeOne(response, bulk);
      if constexpr (kHasMore<Response>) {
        for (const Response& further : response.more()) TakeOne(further, {});
      }
    }
  }

  void TakeOne(const Response& response, const std::vector<grpc::Slice>& bulk) {
    const uint64_t id = response.request_id();
    if (id == 0 || id > items_.size() || IsDone(items_[id - 1])) return;
    Item* const item = items_[id - 1];
    const bool last = response.has_status();
    if (last) {
      Outcome outcome = FromItem(response.status());
      if (!outcome.status.ok()) return End(item, std::move(outcome), /*answered=*/true);
    }
    absl::Status status = item->Take(response, bulk);
    if (status.ok() && last) status = item->Complete(response);
    if (last || !status.ok()) End(item, {std::move(status), 0}, /*answered=*/last);
  }

  bool IsDone(Item* item) {
    MutexLock lock(&mu_);
    return item->done;
  }

  void End(Item* item, Outcome outcome, bool answered) {
    {
      MutexLock lock(&mu_);
      if (item->done) return;
      item->done = true;
      item->outcome = std::move(outcome);
    }
    item->Ended(answered);
  }

  const std::unique_ptr<RawStream> stream_;
  const std::span<Item* const> items_;
  const TimePoint deadline_;
  Request together_;  // items that are not written yet, of the writing thread
  size_t num_together_ = 0;
  Mutex mu_;  // each item's done and outcome, which both threads set
};

// Takes out the items that are not worth another try: OK, failed for good, or told to wait past
// `deadline`. The longest pause the server asks for of the rest.
template <typename Item>
uint32_t KeepRetryable(TimePoint deadline, std::vector<Item*>* pending) {
  const TimePoint now = std::chrono::steady_clock::now();
  uint32_t retry_after_ms = 0;
  std::erase_if(*pending, [&](const Item* item) {
    if (!IsRetryable(item->outcome)) return true;
    const uint32_t hint_ms = item->outcome.retry_after_ms;
    if (now + std::chrono::milliseconds(hint_ms) >= deadline) return true;
    retry_after_ms = std::max(retry_after_ms, hint_ms);
    return false;
  });
  return retry_after_ms;
}

// Runs rounds until every item is done and none is worth another try. A round that gets an item
// through costs no retry: a server that admits a few at a time is making progress. `method` as for
// OpenStream.
template <typename Request, typename Response>
void RunItems(ClientCore* core, TimePoint deadline, const char* method,
              std::vector<StreamItem<Request, Response>*> pending) {
  const uint32_t max_retries = core->options().max_retries;
  uint32_t tries = 0;  // rounds without progress
  while (!pending.empty()) {
    for (auto* item : pending) {
      item->done = false;
      item->outcome = {};
      item->Reset();
    }
    {
      Call call(core, deadline);
      StreamRound<Request, Response>(OpenStream(core, method, call.context()), pending, deadline)
          .Run();
    }
    const bool progress = std::any_of(pending.begin(), pending.end(),
                                      [](auto* item) { return item->outcome.status.ok(); });
    const uint32_t retry_after_ms = KeepRetryable(deadline, &pending);
    if (pending.empty() || max_retries == 0 || (!progress && tries >= max_retries)) return;
    const absl::Status paused = core->Pause(tries, retry_after_ms, deadline);
    if (!progress) ++tries;
    if (paused.ok()) continue;
    if (absl::IsCancelled(paused)) {
      for (auto* item : pending) item->outcome.status = paused;
    }
    return;
  }
}

}  // namespace sketchkv::client
