#include "service/config.h"

#include <algorithm>
#include <iterator>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace sketchkv {
namespace {

bool IsLocalAddress(const std::string& address) {
  return absl::StartsWith(address, "127.") || absl::StartsWith(address, "localhost:") ||
         absl::StartsWith(address, "[::1]:") || absl::StartsWith(address, "unix:");
}

}  // namespace

absl::Status Config::Validate() const {
  if (listen.empty()) return absl::InvalidArgumentError("--listen is empty; it needs HOST:PORT");
  if (!IsLocalAddress(listen) && !insecure) {
    return absl::InvalidArgumentError(
        absl::StrCat("--listen is ", listen,
                     ", which other machines may reach, and this server has no TLS; "
                     "give --insecure to serve there all the same"));
  }
  if (host_bytes != 0 && host_bytes < (1 << 20)) {
    return absl::InvalidArgumentError(
        absl::StrCat("--host-bytes is ", host_bytes, "; it needs at least ", 1 << 20));
  }
  int device = 0;
  if (gpu != "auto" && gpu != "none" && !(absl::SimpleAtoi(gpu, &device) && device >= 0)) {
    return absl::InvalidArgumentError(
        absl::StrCat("--gpu is ", gpu, "; it needs auto, none or the number of a card"));
  }
  if (gpu_bytes != 0 && gpu_bytes < (1 << 20)) {
    return absl::InvalidArgumentError(
        absl::StrCat("--gpu-bytes is ", gpu_bytes, "; it needs at least ", 1 << 20));
  }
  if (gpu_batch_us > 10000) {
    return absl::InvalidArgumentError(
        absl::StrCat("--gpu-batch-us is ", gpu_batch_us, "; at most 10000"));
  }
  if (gpu_failure != "continue" && gpu_failure != "exit") {
    return absl::InvalidArgumentError(
        absl::StrCat("--gpu-failure is ", gpu_failure, "; it needs continue or exit"));
  }
  if (inflight_bytes != 0 && inflight_bytes < (16 << 20)) {
    return absl::InvalidArgumentError(
        absl::StrCat("--inflight-bytes is ", inflight_bytes, "; it needs at least ", 16 << 20));
  }
  if (shm_client_bytes < (1 << 20)) {
    return absl::InvalidArgumentError(
        absl::StrCat("--shm-client-bytes is ", shm_client_bytes, "; it needs at least ", 1 << 20));
  }
  if (shm_bytes != 0 && shm_bytes < (1 << 20)) {
    return absl::InvalidArgumentError(
        absl::StrCat("--shm-bytes is ", shm_bytes, "; it needs at least ", 1 << 20));
  }
  if (threads > 1024) {
    return absl::InvalidArgumentError(absl::StrCat("--threads is ", threads, "; at most 1024"));
  }
  const char* const levels[] = {"trace", "debug", "info", "warn", "error"};
  if (std::find(std::begin(levels), std::end(levels), log_level) == std::end(levels)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--log-level is ", log_level, "; it needs one of ", absl::StrJoin(levels, ", ")));
  }
  if (spin_us.value_or(0) > 100000) {
    return absl::InvalidArgumentError(absl::StrCat("--spin-us is ", *spin_us, "; at most 100000"));
  }
  if (max_queued == 0) return absl::InvalidArgumentError("--max-queued is 0; it needs at least 1");
  if (max_timeout_ms == 0) {
    return absl::InvalidArgumentError("--max-timeout-ms is 0; it needs at least 1");
  }
  return absl::OkStatus();
}

}  // namespace sketchkv
