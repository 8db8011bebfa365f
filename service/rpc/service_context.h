#pragma once

#include <grpcpp/server_context.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/server_callback.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <string>

#include "service/engine/engine.h"
#include "service/engine/executor.h"
#include "service/engine/gpu.h"
#include "service/rpc/inflight.h"
#include "service/rpc/write_watch.h"
#include "service/shm/segment_table.h"

namespace sketchkv {

// Until identities exist every caller is this tenant.
inline constexpr uint32_t kDefaultTenant = 0;

// A payload chunk: 4 MiB, gRPC's default message limit, less room for the other fields.
inline constexpr size_t kMaxChunkBytes = (size_t{4} << 20) - (size_t{64} << 10);

// A bidirectional stream that parses and makes its messages itself.
using RawBidiReactor = grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>;

// What all services share. Everything pointed to outlives the server.
struct ServiceContext {
  Engine* engine = nullptr;
  Executor* executor = nullptr;
  InflightBytes* inflight = nullptr;
  WriteWatch* writes = nullptr;
  SegmentTable* segments = nullptr;  // null: this server shares no memory
  Gpu* gpu = nullptr;                // null: this server has no card
  std::string shm_socket;            // where clients get segments; empty: nowhere
  std::string shm_server;            // 16 bytes: what the socket says of this server
  const Clock* clock = nullptr;
  std::chrono::milliseconds max_timeout{60000};  // of one item or unary call; of writing an answer
  std::string isa;
  std::string version;

  // When an item that asked for `timeout_ms` is late; never later than its call.
  [[nodiscard]] TimePoint Deadline(uint32_t timeout_ms,
                                   const grpc::CallbackServerContext& call) const {
    auto timeout = max_timeout;
    if (timeout_ms > 0) timeout = std::min(timeout, std::chrono::milliseconds(timeout_ms));
    const auto call_left = call.deadline() - std::chrono::system_clock::now();
    const auto left = std::min<std::chrono::nanoseconds>(timeout, call_left);
    return clock->Now() + left;
  }
};

}  // namespace sketchkv
