#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "client/cpp/demo/child_process.h"

namespace sketchkv::demo {

// A directory that goes with this object, and everything in it.
class TemporaryDirectory {
 public:
  // In the system's place for such things. INTERNAL with the reason.
  [[nodiscard]] static absl::StatusOr<std::unique_ptr<TemporaryDirectory>> Create();
  ~TemporaryDirectory();

  [[nodiscard]] const std::string& path() const { return path_; }

 private:
  explicit TemporaryDirectory(std::string path) : path_(std::move(path)) {}

  const std::string path_;
};

// A sketchkvd of our own on a free loopback port. Stopped with this object: SIGTERM, and SIGKILL
// after a grace period.
class ServerProcess {
 public:
  // Returns once it accepts connections. `scratch_dir` (for its port file and log) outlives this
  // object. INTERNAL with the end of its log when it ends or does not serve in time; CANCELLED when
  // `cancelled` says so.
  [[nodiscard]] static absl::StatusOr<std::unique_ptr<ServerProcess>> Start(
      const std::string& program, uint64_t host_bytes, const std::string& scratch_dir,
      const std::function<bool()>& cancelled);
  ~ServerProcess();

  [[nodiscard]] const std::string& address() const { return address_; }
  // Stops it and says whether it ended well. INTERNAL with the end of its log otherwise.
  [[nodiscard]] absl::Status Stop();

 private:
  ServerProcess(std::unique_ptr<ChildProcess> process, std::string log_file)
      : process_(std::move(process)), log_file_(std::move(log_file)) {}
  [[nodiscard]] absl::Status ErrorWithLog(const std::string& what) const;

  const std::unique_ptr<ChildProcess> process_;
  const std::string log_file_;
  std::string address_;
};

}  // namespace sketchkv::demo
