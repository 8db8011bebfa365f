#include "client/cpp/src/health.h"

#include <grpcpp/completion_queue.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/support/byte_buffer.h>

#include <algorithm>
#include <chrono>
#include <string>

#include "absl/strings/str_cat.h"

namespace sketchkv::client {
namespace {

constexpr std::chrono::milliseconds kPollPause{20};

// HealthCheckResponse { ServingStatus status = 1; } with SERVING = 1. gRPC ships no generated code
// for it; a request for the whole server is the empty message.
bool IsServing(const grpc::ByteBuffer& response) {
  grpc::Slice slice;
  if (!response.DumpToSingleSlice(&slice).ok()) return false;
  return slice.size() >= 2 && slice.begin()[0] == 0x08 && slice.begin()[1] == 1;
}

grpc::Status Check(ClientCore* core, TimePoint deadline, bool* serving) {
  grpc::GenericStub stub(core->channel());
  Call call(core, deadline);
  call.context()->set_wait_for_ready(true);
  const grpc::Slice empty;
  // Not the callback API: its threads, once there, would take every stream's bytes from the socket
  // and wake the thread that reads the stream for each.
  grpc::CompletionQueue events;
  const auto rpc = stub.PrepareUnaryCall(call.context(), "/grpc.health.v1.Health/Check",
                                         grpc::ByteBuffer(&empty, 1), &events);
  rpc->StartCall();
  grpc::ByteBuffer response;
  grpc::Status status;
  rpc->Finish(&response, &status, nullptr);
  void* tag = nullptr;
  for (bool ok = false; events.Next(&tag, &ok);) events.Shutdown();
  *serving = status.ok() && IsServing(response);
  return status;
}

}  // namespace

absl::Status WaitUntilServing(ClientCore* core, TimePoint deadline) {
  std::string last = "no connection";
  while (std::chrono::steady_clock::now() < deadline) {
    bool serving = false;
    const absl::Status status = FromGrpc(Check(core, deadline, &serving));
    if (serving) return absl::OkStatus();
    if (absl::IsUnimplemented(status) || absl::IsCancelled(status)) return status;
    if (status.ok()) {
      last = "it answers NOT_SERVING";
    } else if (!absl::IsDeadlineExceeded(status)) {
      last = status.ToString();
    }
    const absl::Status paused = core->Pause(0, static_cast<uint32_t>(kPollPause.count()), deadline);
    if (!paused.ok() && absl::IsCancelled(paused)) return paused;
    if (!paused.ok()) break;
  }
  return absl::DeadlineExceededError(
      absl::StrCat(core->options().target, " does not serve: ", last));
}

}  // namespace sketchkv::client
