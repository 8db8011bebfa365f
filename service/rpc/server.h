#pragma once

#include <chrono>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "service/rpc/service_context.h"

namespace sketchkv {

struct ServerOptions {
  std::string listen;
  bool reflection = false;
  uint64_t resource_quota_bytes = 0;  // gRPC's own buffers: the backstop behind InflightBytes
};

// The gRPC server and its services. Health of "" and of "sketchkv" follows SetServing.
class Server {
 public:
  // UNAVAILABLE when the address cannot be bound. `context` outlives the server. Not serving yet.
  [[nodiscard]] static absl::StatusOr<std::unique_ptr<Server>> Start(const ServerOptions& options,
                                                                     ServiceContext* context);
  virtual ~Server() = default;

  [[nodiscard]] virtual int port() const = 0;
  virtual void SetServing(bool serving) = 0;
  // Health of "gpu", which is unknown until this is called.
  virtual void SetGpuServing(bool serving) = 0;
  // Accepts no more, lets calls under way finish until `drain` has passed, cancels the rest. The
  // executor must still run.
  virtual void Shutdown(std::chrono::milliseconds drain) = 0;
};

}  // namespace sketchkv
