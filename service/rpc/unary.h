#pragma once

#include <grpcpp/support/server_callback.h>

#include <utility>

#include "absl/status/status.h"
#include "service/rpc/service_context.h"
#include "service/rpc/status.h"

namespace sketchkv {

// Runs `body`, an absl::Status() that fills the response, on the executor and finishes the call
// with what it returns. Refusals carry gRPC's retry hint.
template <typename Body>
grpc::ServerUnaryReactor* RunUnary(const ServiceContext& service, grpc::CallbackServerContext* call,
                                   uint32_t timeout_ms, Body body) {
  grpc::ServerUnaryReactor* reactor = call->DefaultReactor();
  const auto finish = [reactor, call](const absl::Status& status) {
    AddRetryHint(status, call);
    reactor->Finish(ToGrpcStatus(status));
  };
  const absl::Status submitted = service.executor->Submit(
      {.run = [finish, body = std::move(body)]() mutable { finish(body()); },
       .drop = [finish](const absl::Status& why) { finish(why); },
       .deadline = service.Deadline(timeout_ms, *call),
       .cancelled = [call] { return call->IsCancelled(); }});
  if (!submitted.ok()) finish(submitted);
  return reactor;
}

}  // namespace sketchkv
