#include "tests/bench/bare_contenders.h"

#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <memory>
#include <random>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/bench/bare_stream.h"

namespace sketchkv::bench {
namespace {

std::shared_ptr<grpc::Channel> Connect(const Options& options) {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(-1);
  return grpc::CreateCustomChannel(options.Text("server", ""), grpc::InsecureChannelCredentials(),
                                   arguments);
}

std::vector<uint8_t> RandomBytes(size_t count) {
  std::vector<uint8_t> bytes(count);
  std::mt19937_64 random(1);
  for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random());
  return bytes;
}

class BareStream final : public Contender {
 public:
  explicit BareStream(const Options& options)
      : items_(options.Number("items", 1)),
        header_{options.Number("up", 0), options.Number("down", 0)},
        logical_(static_cast<double>(options.Number("logical", 0))),
        payload_(RandomBytes(std::max<uint64_t>(header_.up, 1))),
        stub_(Connect(options)) {}

  absl::StatusOr<Repetition> Run() override {
    const double begin = Now();
    grpc::ClientContext context;
    grpc::CompletionQueue queue;
    const auto stream = stub_.PrepareCall(&context, kBareStreamMethod, &queue);
    stream->StartCall(Tag(kStarted));
    uint64_t received = 0, want = items_ * std::max<uint64_t>(header_.down, 1);
    Position next;
    grpc::ByteBuffer response;
    grpc::Status status;
    void* tag = nullptr;
    for (bool ok = false; queue.Next(&tag, &ok);) {
      const auto event = static_cast<Event>(reinterpret_cast<intptr_t>(tag));
      if (event == kFinished) break;
      if (!ok) return absl::InternalError("the bare stream broke");
      if (event == kStarted) {
        stream->Read(&response, Tag(kRead));
      } else if (event == kRead) {
        received += response.Length();
        if (received < want) {
          stream->Read(&response, Tag(kRead));
        } else {
          stream->Finish(&status, Tag(kFinished));
        }
      }
      if (event == kStarted || event == kWritten) Write(stream.get(), &next);
    }
    const double end = Now();
    queue.Shutdown();
    for (bool ok = false; queue.Next(&tag, &ok);) {
    }
    if (!status.ok()) return absl::InternalError(status.error_message());
    return Repetition{end - begin, logical_ * static_cast<double>(items_)};
  }

 private:
  enum Event : intptr_t { kStarted = 1, kRead, kWritten, kClosed, kFinished };
  struct Position {
    uint64_t item = 0;
    uint64_t sent = 0;  // of its bytes
    bool begun = false;
    bool closed = false;
  };
  static void* Tag(Event event) { return reinterpret_cast<void*>(event); }

  // The next message: a header alone where an item begins, then its bytes.
  void Write(grpc::GenericClientAsyncReaderWriter* stream, Position* next) {
    if (next->item == items_) {
      if (!std::exchange(next->closed, true)) stream->WritesDone(Tag(kClosed));
      return;
    }
    const uint64_t bytes = std::min<uint64_t>(header_.up - next->sent, kBareMessageBytes);
    std::vector<grpc::Slice> slices;
    if (!next->begun) slices.emplace_back(&header_, sizeof(header_), grpc::Slice::STATIC_SLICE);
    if (bytes > 0) {
      slices.emplace_back(payload_.data() + next->sent, bytes, grpc::Slice::STATIC_SLICE);
    }
    next->begun = true;
    next->sent += bytes;
    if (next->sent == header_.up) *next = Position{.item = next->item + 1};
    stream->Write(grpc::ByteBuffer(slices.data(), slices.size()), Tag(kWritten));
  }

  const uint64_t items_;
  const BareHeader header_;
  const double logical_;
  const std::vector<uint8_t> payload_;
  grpc::GenericStub stub_;
};

class BarePing final : public Contender {
 public:
  explicit BarePing(const Options& options)
      : pauses_(options),
        header_{options.Number("up", 0), options.Number("down", 0)},
        payload_(RandomBytes(std::max<uint64_t>(header_.up, 1))),
        stub_(Connect(options)) {}

  absl::StatusOr<Repetition> Run() override {
    pauses_.Next();
    const double begin = Now();
    grpc::ClientContext context;
    grpc::CompletionQueue queue;
    const grpc::Slice slices[] = {
        grpc::Slice(&header_, sizeof(header_), grpc::Slice::STATIC_SLICE),
        grpc::Slice(payload_.data(), header_.up, grpc::Slice::STATIC_SLICE)};
    const grpc::ByteBuffer request(slices, 2);
    const auto call = stub_.PrepareUnaryCall(&context, kBareStreamMethod, request, &queue);
    call->StartCall();
    grpc::ByteBuffer response;
    grpc::Status status;
    call->Finish(&response, &status, nullptr);
    void* tag = nullptr;
    bool ok = false;
    queue.Next(&tag, &ok);
    const double end = Now();
    if (!status.ok()) return absl::InternalError(status.error_message());
    return Repetition{end - begin, 1};
  }

 private:
  Pauses pauses_;
  const BareHeader header_;
  const std::vector<uint8_t> payload_;
  grpc::GenericStub stub_;
};

}  // namespace

void AddBareContenders(Registry* registry) {
  registry->Add("bare.stream", [](const Options& options) -> Made {
    return std::make_unique<BareStream>(options);
  });
  registry->Add("bare.ping",
                [](const Options& options) -> Made { return std::make_unique<BarePing>(options); });
}

}  // namespace sketchkv::bench
