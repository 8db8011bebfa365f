#include "client/cpp/src/attend_stream.h"

#include <utility>

namespace sketchkv::client {

AttendStream::AttendStream(ClientCore* core, TimePoint deadline)
    : call_(core, deadline),
      stream_(core->attention().PrepareAsyncAttendStream(call_.context(), &events_)) {
  stream_->StartCall(Tag(kStarted));
  thread_ = std::thread([this] { Work(); });
}

AttendStream::~AttendStream() {
  Cancel();
  thread_.join();
}

Outcome AttendStream::Ask(v1::AttentionRequest request, TimePoint deadline,
                          v1::AttendResponse* response) {
  Waiter waiter;
  MutexLock lock(&mu_);
  if (broken_ || retired_) return {absl::UnavailableError("the attend stream has ended"), 0};
  const uint64_t id = next_id_++;
  request.set_request_id(id);
  request.set_timeout_ms(RemainingMs(deadline));
  queue_.push_back(std::move(request));
  waiters_[id] = &waiter;
  WriteNext();
  while (!waiter.done) {
    if (answered_.WaitUntil(&mu_, deadline) || waiter.done) continue;
    if (std::chrono::steady_clock::now() < deadline) continue;
    waiters_.erase(id);
    std::erase_if(queue_, [id](const auto& queued) { return queued.request_id() == id; });
    return {absl::DeadlineExceededError("no answer on the attend stream in time"), 0};
  }
  *response = std::move(waiter.response);
  return std::move(waiter.outcome);
}

void AttendStream::WriteNext() {
  if (writing_ || broken_ || half_closed_) return;
  if (queue_.empty()) {
    if (!retired_) return;
    half_closed_ = true;
    stream_->WritesDone(Tag(kWritten));
    return;
  }
  writing_ = true;
  stream_->Write(queue_.front(), Tag(kWritten));  // serializes at once
  queue_.pop_front();
}

void AttendStream::Retire() {
  MutexLock lock(&mu_);
  retired_ = true;
  WriteNext();
}

void AttendStream::Cancel() { call_.context()->TryCancel(); }

bool AttendStream::closed() const {
  MutexLock lock(&mu_);
  return broken_ || retired_;
}

bool AttendStream::ended() const {
  MutexLock lock(&mu_);
  return ended_;
}

void AttendStream::Work() {
  void* tag = nullptr;
  bool ok = false;
  while (events_.Next(&tag, &ok)) {
    switch (static_cast<Event>(reinterpret_cast<intptr_t>(tag))) {
      case kStarted:
        stream_->Read(&response_, Tag(kRead));  // fails, and ends the stream, where the start did
        [[fallthrough]];
      case kWritten: {
        MutexLock lock(&mu_);
        writing_ = false;
        if (ok) WriteNext();
        // Otherwise the read fails too, and that ends the stream.
        break;
      }
      case kRead:
        OnRead(ok);
        break;
      case kFinished:
        OnFinished();
        events_.Shutdown();  // ends this loop once a write still under way has failed
        break;
    }
  }
}

void AttendStream::OnRead(bool ok) {
  MutexLock lock(&mu_);
  if (!ok) {
    broken_ = true;  // no write begins from here on
    stream_->Finish(&status_, Tag(kFinished));
    return;
  }
  const auto it = waiters_.find(response_.request_id());
  if (it != waiters_.end()) {  // else it gave up waiting
    it->second->response = std::move(response_);
    it->second->done = true;
    waiters_.erase(it);
    answered_.NotifyAll();
  }
  stream_->Read(&response_, Tag(kRead));
}

void AttendStream::OnFinished() {
  Outcome outcome = FromCall(status_, *call_.context());
  if (outcome.status.ok()) {
    outcome.status = absl::UnavailableError("the server ended the attend stream");
  }
  MutexLock lock(&mu_);
  ended_ = true;
  for (auto& [id, waiter] : waiters_) {
    waiter->outcome = outcome;
    waiter->done = true;
  }
  waiters_.clear();
  answered_.NotifyAll();
}

}  // namespace sketchkv::client
