#pragma once

#include <grpcpp/server.h>

#include <memory>
#include <thread>

#include "kernels/base/mutex.h"

namespace sketchkv {

// Keeps gRPC's callback threads polling. They sleep for 100 ms at a time once none of them has seen
// an event for a second (1.51, completion_queue_cc.cc), and whatever call comes first then waits
// for them. This calls the server's own health service from within the process often enough for one
// of them to be always awake.
class KeepAwake {
 public:
  explicit KeepAwake(grpc::Server* server);
  // Waits for the call under way; before the server shuts down.
  ~KeepAwake();

 private:
  void Run(const std::shared_ptr<grpc::Channel>& channel);

  Mutex mu_;
  CondVar changed_;
  bool stopping_ SKETCHKV_GUARDED_BY(mu_) = false;
  std::thread thread_;
};

}  // namespace sketchkv
