#include "client/cpp/src/attend_stream.h"

#include <utility>

namespace sketchkv::client {

std::shared_ptr<AttendStream> AttendStream::Open(ClientCore* core, TimePoint deadline) {
  std::shared_ptr<AttendStream> stream(new AttendStream(core, deadline));
  stream->self_ = stream;
  stream->core_->attention().async()->AttendStream(stream->call_->context(), stream.get());
  // Writes start outside callbacks, so OnDone waits for this hold: see WriteNext and OnReadDone.
  stream->AddHold();
  stream->StartRead(&stream->response_);
  stream->StartCall();
  return stream;
}

AttendStream::AttendStream(ClientCore* core, TimePoint deadline)
    : core_(core), call_(std::make_unique<Call>(core, deadline)) {}

Outcome AttendStream::Ask(v1::AttentionRequest request, TimePoint deadline, std::string* payload) {
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
  *payload = std::move(waiter.payload);
  return std::move(waiter.outcome);
}

void AttendStream::WriteNext() {
  if (writing_ || broken_) return;
  if (queue_.empty()) {
    if (retired_ && !half_closed_) {
      half_closed_ = true;
      StartWritesDone();
    }
    return;
  }
  sending_ = std::move(queue_.front());
  queue_.pop_front();
  writing_ = true;
  StartWrite(&sending_);
}

void AttendStream::Retire() {
  MutexLock lock(&mu_);
  retired_ = true;
  WriteNext();
}

void AttendStream::Cancel() {
  MutexLock lock(&mu_);
  if (!ended_) call_->context()->TryCancel();
}

void AttendStream::Join() {
  MutexLock lock(&mu_);
  while (!ended_) answered_.Wait(&mu_);
}

bool AttendStream::closed() const {
  MutexLock lock(&mu_);
  return broken_ || retired_;
}

bool AttendStream::ended() const {
  MutexLock lock(&mu_);
  return ended_;
}

void AttendStream::OnWriteDone(bool ok) {
  MutexLock lock(&mu_);
  writing_ = false;
  if (ok) WriteNext();
  // Otherwise the read fails too, and that ends the stream.
}

void AttendStream::OnReadDone(bool ok) {
  if (!ok) {
    {
      MutexLock lock(&mu_);
      broken_ = true;  // no write begins from here on
    }
    RemoveHold();
    return;
  }
  {
    MutexLock lock(&mu_);
    const auto it = waiters_.find(response_.request_id());
    if (it != waiters_.end()) {  // else it gave up waiting
      it->second->outcome = FromItem(response_.status());
      it->second->payload = std::move(*response_.mutable_payload());
      it->second->done = true;
      waiters_.erase(it);
      answered_.NotifyAll();
    }
  }
  StartRead(&response_);
}

void AttendStream::OnDone(const grpc::Status& status) {
  // Destroyed last: after the lock is gone this may be the only owner.
  const std::shared_ptr<AttendStream> self = std::move(self_);
  Outcome outcome = FromCall(status, *call_->context());
  if (outcome.status.ok()) {
    outcome.status = absl::UnavailableError("the server ended the attend stream");
  }
  MutexLock lock(&mu_);
  call_ = nullptr;
  ended_ = true;
  for (auto& [id, waiter] : waiters_) {
    waiter->outcome = outcome;
    waiter->done = true;
  }
  waiters_.clear();
  answered_.NotifyAll();
}

}  // namespace sketchkv::client
