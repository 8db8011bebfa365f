#pragma once

#include <sys/types.h>

#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace sketchkv::demo {

// A program run as a process of its own. It ends with this object, and with this process even when
// that is killed. Not thread-safe; start it on the main thread: the kernel ties the child to the
// thread that forked it.
class ChildProcess {
 public:
  struct Options {
    std::vector<std::string> argv;  // argv[0]: the path of the program
    bool capture_stdout = false;    // for Finish; otherwise stdout goes to log_file
    std::string log_file;           // stderr goes there too; empty: both are inherited
  };

  // INTERNAL with the reason when the process cannot be made. A program that cannot be executed
  // shows as exit code 127.
  [[nodiscard]] static absl::StatusOr<std::unique_ptr<ChildProcess>> Start(const Options& options);
  ~ChildProcess();  // Stop with no grace

  [[nodiscard]] pid_t pid() const { return pid_; }

  // How it ended ("exit code 3", "signal 9"); nullopt while it runs.
  [[nodiscard]] std::optional<std::string> HowEnded();
  // Reads its stdout to the end and waits for it. INTERNAL unless it exits with 0; CANCELLED, with
  // the process stopped, as soon as `cancelled` says so (asked some ten times a second).
  [[nodiscard]] absl::StatusOr<std::string> Finish(const std::function<bool()>& cancelled);
  // SIGTERM, then SIGKILL when it has not ended after `grace`. Returns how it ended.
  std::string Stop(std::chrono::milliseconds grace);

 private:
  ChildProcess(pid_t pid, int stdout_fd) : pid_(pid), stdout_fd_(stdout_fd) {}

  const pid_t pid_;
  int stdout_fd_;  // -1: not captured
  std::optional<int> wait_status_;
};

}  // namespace sketchkv::demo
