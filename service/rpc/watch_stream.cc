#include "service/rpc/watch_stream.h"

#include <utility>

#include "service/rpc/status.h"

namespace sketchkv {
namespace {

constexpr size_t kMaxQueued = 256;

std::string BytesOf(const BlockHash& hash) {
  return std::string(hash.bytes().begin(), hash.bytes().end());
}

}  // namespace

template <typename Change>
void WatchStream::Step(const Change& change) {
  bool write = false, finish = false, schedule = false;
  absl::Status end_status;
  {
    MutexLock lock(&mu_);
    change();
    if (over_) queue_.clear();
    if (!writing_ && !queue_.empty()) {
      outgoing_ = std::move(queue_.front());
      queue_.pop_front();
      writing_ = write = true;
    }
    schedule = MayPump();
    if (over_ && !writing_ && !pumping_ && !finished_) {
      finished_ = finish = true;
      end_status = end_status_;
    }
  }
  if (write) StartWrite(&outgoing_);
  if (schedule) SchedulePump();
  if (finish) Finish(ToGrpcStatus(end_status));
}

WatchStream::WatchStream(ServiceContext* service, const v1::WatchRequest& request)
    : service_(service) {
  EventLog& log = service_->engine->pool().events();
  if (!request.model().empty()) {
    auto model = service_->engine->models().Get(kDefaultTenant, request.model());
    if (!model.ok()) {
      Step([&]() SKETCHKV_REQUIRES(mu_) {
        over_ = true;
        end_status_ = model.status();
      });
      return;
    }
    model_ = *std::move(model);
  }
  {
    MutexLock lock(&mu_);
    const uint64_t newest = log.next_sequence();
    next_ = request.from_sequence() == 0 ? newest : request.from_sequence();
    if (next_ > newest) {
      // The reader knows events this log never had: it was started anew since.
      v1::WatchResponse gap;
      gap.set_type(v1::WatchResponse::TYPE_GAP);
      gap.set_sequence(newest - 1);
      queue_.push_back(std::move(gap));
      next_ = newest;
    }
  }
  // Headers go out at once, so that a watcher knows from when on it sees events.
  StartSendInitialMetadata();
  subscription_ = log.Subscribe([this] { Wake(); });
  Wake();
}

// On any thread, perhaps under the pool's lock: it only schedules.
void WatchStream::Wake() {
  bool schedule = false;
  {
    MutexLock lock(&mu_);
    wanted_ = true;
    schedule = MayPump();
  }
  if (schedule) SchedulePump();
}

bool WatchStream::MayPump() {
  if (!wanted_ || pumping_ || over_ || queue_.size() >= kMaxQueued) return false;
  wanted_ = false;
  pumping_ = true;
  return true;
}

// pumping_ keeps the reactor alive until Step has cleared it.
void WatchStream::SchedulePump() {
  const auto stop = [this](absl::Status why) {
    Step([&]() SKETCHKV_REQUIRES(mu_) {
      pumping_ = false;
      over_ = true;
      end_status_ = std::move(why);
    });
  };
  absl::Status submitted = service_->executor->Submit(
      {.run = [this] { Pump(); }, .drop = stop, .bypass_bound = true});
  if (!submitted.ok()) stop(std::move(submitted));
}

void WatchStream::Pump() {
  Step([&]() SKETCHKV_REQUIRES(mu_) {
    pumping_ = false;
    EventLog::Batch batch = service_->engine->pool().events().Read(next_, kMaxQueued);
    if (batch.first_missing > 0) {
      v1::WatchResponse gap;
      gap.set_type(v1::WatchResponse::TYPE_GAP);
      gap.set_sequence((batch.events.empty() ? batch.next : batch.events.front().sequence) - 1);
      queue_.push_back(std::move(gap));
    }
    for (const BlockEvent& event : batch.events) {
      std::optional<v1::WatchResponse> message = ToMessage(event);
      if (message.has_value()) queue_.push_back(*std::move(message));
    }
    next_ = batch.next;
    if (batch.events.size() == kMaxQueued) wanted_ = true;  // there may be more
  });
}

std::optional<v1::WatchResponse> WatchStream::ToMessage(const BlockEvent& event) const {
  if (event.key.tenant != kDefaultTenant) return std::nullopt;
  v1::WatchResponse message;
  if (model_ != nullptr) {
    if (event.key.fingerprint != model_->fingerprint) return std::nullopt;
    message.set_model(model_->name);
  } else {
    for (const auto& model : service_->engine->models().List(kDefaultTenant)) {
      if (model->fingerprint == event.key.fingerprint) message.set_model(model->name);
    }
  }
  message.set_sequence(event.sequence);
  message.set_type(static_cast<v1::WatchResponse::Type>(event.type));
  message.set_block_hash(BytesOf(event.key.hash));
  if (event.parent.has_value()) message.set_parent_hash(BytesOf(*event.parent));
  return message;
}

void WatchStream::OnWriteDone(bool ok) {
  Step([&]() SKETCHKV_REQUIRES(mu_) {
    writing_ = false;
    if (!ok) over_ = true;
  });
}

void WatchStream::OnCancel() {
  Step([&]() SKETCHKV_REQUIRES(mu_) { over_ = true; });
}

void WatchStream::OnDone() {
  if (subscription_ != 0) service_->engine->pool().events().Unsubscribe(subscription_);
  delete this;
}

}  // namespace sketchkv
