// sketchkv_bench_bare PORT_FILE: a gRPC server that moves bytes and does nothing else, the limit of
// what a service on this gRPC can reach. Serves until it is killed.

#include <grpcpp/generic/async_generic_service.h>
#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <string>
#include <vector>

#include "kernels/base/mutex.h"
#include "tests/bench/bare_stream.h"

namespace sketchkv::bench {
namespace {

// Random enough for a transport that does not look: never zeros.
const std::vector<uint8_t>& Payload() {
  static const std::vector<uint8_t>* const payload = [] {
    auto* bytes = new std::vector<uint8_t>(kBareMessageBytes);
    uint32_t state = 1;
    for (uint8_t& byte : *bytes)
      byte = static_cast<uint8_t>((state = state * 1664525 + 1013904223) >> 24);
    return bytes;
  }();
  return *payload;
}

class Reactor final : public grpc::ServerGenericBidiReactor {
 public:
  Reactor() { StartRead(&request_); }

 private:
  void OnReadDone(bool ok) override {
    if (!ok) {
      MutexLock lock(&mu_);
      reads_done_ = true;
      FinishWhenDone();
      return;
    }
    TakeMessage();
    StartRead(&request_);
  }

  void OnWriteDone(bool ok) override {
    MutexLock lock(&mu_);
    writing_ = false;
    if (!ok) to_send_.clear();
    WriteNext();
    FinishWhenDone();
  }

  void OnDone() override { delete this; }

  void TakeMessage() {
    uint64_t bytes = request_.Length();
    if (up_left_ == 0) {
      grpc::Slice first;
      if (!request_.DumpToSingleSlice(&first).ok() || first.size() < sizeof(header_)) return;
      std::memcpy(&header_, first.begin(), sizeof(header_));
      up_left_ = header_.up;
      bytes -= sizeof(header_);
    }
    up_left_ -= std::min(up_left_, bytes);
    if (up_left_ > 0) return;
    MutexLock lock(&mu_);
    to_send_.push_back(std::max<uint64_t>(header_.down, 1));
    WriteNext();
  }

  void WriteNext() SKETCHKV_REQUIRES(mu_) {
    if (writing_ || to_send_.empty()) return;
    const uint64_t bytes = std::min<uint64_t>(to_send_.front(), kBareMessageBytes);
    to_send_.front() -= bytes;
    if (to_send_.front() == 0) to_send_.erase(to_send_.begin());
    const grpc::Slice slice(Payload().data(), bytes, grpc::Slice::STATIC_SLICE);
    response_ = grpc::ByteBuffer(&slice, 1);
    writing_ = true;
    StartWrite(&response_);
  }

  void FinishWhenDone() SKETCHKV_REQUIRES(mu_) {
    if (reads_done_ && !writing_ && to_send_.empty() && !finished_) {
      finished_ = true;
      Finish(grpc::Status::OK);
    }
  }

  // Touched by the reading callbacks alone.
  grpc::ByteBuffer request_;
  BareHeader header_;
  uint64_t up_left_ = 0;

  Mutex mu_;
  grpc::ByteBuffer response_ SKETCHKV_GUARDED_BY(mu_);
  std::vector<uint64_t> to_send_ SKETCHKV_GUARDED_BY(mu_);  // bytes left of each item
  bool writing_ SKETCHKV_GUARDED_BY(mu_) = false;
  bool reads_done_ SKETCHKV_GUARDED_BY(mu_) = false;
  bool finished_ SKETCHKV_GUARDED_BY(mu_) = false;
};

class Service final : public grpc::CallbackGenericService {
  grpc::ServerGenericBidiReactor* CreateReactor(grpc::GenericCallbackServerContext*) override {
    return new Reactor;
  }
};

}  // namespace
}  // namespace sketchkv::bench

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: sketchkv_bench_bare PORT_FILE\n");
    return 2;
  }
  sketchkv::bench::Payload();
  sketchkv::bench::Service service;
  int port = 0;
  grpc::ServerBuilder builder;
  builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
  builder.RegisterCallbackGenericService(&service);
  const std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  const std::string path = argv[1], temporary = path + ".tmp";
  std::ofstream(temporary) << port << '\n';
  if (server == nullptr || std::rename(temporary.c_str(), path.c_str()) != 0) {
    std::fprintf(stderr, "sketchkv_bench_bare: cannot serve\n");
    return 1;
  }
  server->Wait();
}
