#include "service/rpc/keep_awake.h"

#include <grpcpp/client_context.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/channel_arguments.h>

#include <chrono>

namespace sketchkv {
namespace {

// Well below the second after which gRPC's threads go to sleep.
constexpr std::chrono::milliseconds kInterval{250};

}  // namespace

KeepAwake::KeepAwake(grpc::Server* server)
    : thread_(
          [this, channel = server->InProcessChannel(grpc::ChannelArguments())] { Run(channel); }) {}

KeepAwake::~KeepAwake() {
  {
    MutexLock lock(&mu_);
    stopping_ = true;
    changed_.NotifyAll();
  }
  thread_.join();
}

void KeepAwake::Run(const std::shared_ptr<grpc::Channel>& channel) {
  grpc::GenericStub stub(channel);
  const grpc::Slice whole_server;  // an empty HealthCheckRequest
  const grpc::ByteBuffer request(&whole_server, 1);
  MutexLock lock(&mu_);
  while (!stopping_) {
    grpc::ClientContext context;
    grpc::ByteBuffer response;
    bool ended = false;
    // A callback call, for its end is an event too. What it answers is of no interest.
    stub.UnaryCall(&context, "/grpc.health.v1.Health/Check", grpc::StubOptions(), &request,
                   &response, [this, &ended](const grpc::Status&) {
                     MutexLock done(&mu_);
                     ended = true;
                     changed_.NotifyAll();
                   });
    while (!ended) changed_.Wait(&mu_);
    const auto until = std::chrono::steady_clock::now() + kInterval;
    while (!stopping_ && changed_.WaitUntil(&mu_, until)) {
    }
  }
}

}  // namespace sketchkv
