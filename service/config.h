#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/status.h"

namespace sketchkv {

// Everything a server can be told. One field, one flag of the same name with dashes.
struct Config {
  // Address to serve on. Without TLS it must be a loopback address or a Unix socket unless
  // `insecure` says otherwise. Port 0: any free one.
  std::string listen = "127.0.0.1:7415";
  bool insecure = false;
  std::string port_file;          // where to write the port once serving; empty: nowhere
  uint64_t host_bytes = 0;        // of the host tier; 0: a quarter of the memory this process may use
  std::string gpu = "auto";       // auto: the first if there is one; none; or its number
  uint64_t gpu_bytes = 0;         // of the gpu tier; 0: three quarters of what is free there
  uint32_t gpu_batch_us = 0;      // for which an attention call waits for others to go with it
  std::string gpu_failure = "continue";  // when the card fails: continue on the host, or exit
  uint64_t inflight_bytes = 0;    // of payloads under way; 0: an eighth of that memory, at most 1 GiB
  std::string shm_socket;         // Unix socket that hands out shared memory; empty: none
  uint64_t shm_bytes = 0;         // of all clients' shared memory; 0: as inflight_bytes
  uint64_t shm_client_bytes = uint64_t{256} << 20;  // of one client's
  uint32_t threads = 0;           // of the executor; 0: one a core
  // For so long an idle thread looks for work before it sleeps; none: 500 with a card and at least 8
  // threads, else 0.
  std::optional<uint32_t> spin_us;
  uint32_t max_queued = 4096;     // requests that may wait for a thread
  uint32_t max_timeout_ms = 60000;
  uint32_t drain_ms = 10000;      // for calls under way at SIGTERM
  uint32_t scrub_seconds = 600;   // every sealed block is verified once in so long; 0: never
  std::string isa = "auto";       // CPU kernels: see kernels/isa.h
  bool reflection = false;
  std::string log_level = "info"; // trace, debug, info, warn, error

  // INVALID_ARGUMENT naming the flag, its value and what it needs.
  [[nodiscard]] absl::Status Validate() const;
};

}  // namespace sketchkv
