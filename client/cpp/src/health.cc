#include "client/cpp/src/health.h"

#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/support/byte_buffer.h>

#include <algorithm>
#include <chrono>
#include <string>

#include "absl/strings/str_cat.h"
#include "kernels/base/mutex.h"

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
  const grpc::ByteBuffer request(&empty, 1);
  grpc::ByteBuffer response;
  Mutex mu;
  CondVar changed;
  bool done = false;
  grpc::Status status;
  stub.UnaryCall(call.context(), "/grpc.health.v1.Health/Check", grpc::StubOptions(), &request,
                 &response, [&](grpc::Status ended) {
                   MutexLock lock(&mu);
                   status = std::move(ended);
                   done = true;
                   changed.NotifyOne();
                 });
  MutexLock lock(&mu);
  while (!done) changed.Wait(&mu);
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
