#include "client/cpp/demo/server_process.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <system_error>
#include <thread>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace sketchkv::demo {
namespace {

constexpr std::chrono::seconds kStartTimeout{30};
constexpr std::chrono::seconds kStopGrace{10};
constexpr std::chrono::milliseconds kPollPause{10};
constexpr size_t kLogTail = 2000;  // bytes

std::string ReadAll(const std::string& path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

}  // namespace

absl::StatusOr<std::unique_ptr<TemporaryDirectory>> TemporaryDirectory::Create() {
  std::error_code error;
  const auto parent = std::filesystem::temp_directory_path(error);
  if (error) return absl::InternalError(absl::StrCat("temporary directory: ", error.message()));
  std::string path = (parent / "sketchkv-demo-XXXXXX").string();
  if (mkdtemp(path.data()) == nullptr) {
    return absl::InternalError(absl::StrCat(path, ": ", std::strerror(errno)));
  }
  return std::unique_ptr<TemporaryDirectory>(new TemporaryDirectory(std::move(path)));
}

TemporaryDirectory::~TemporaryDirectory() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

absl::StatusOr<std::unique_ptr<ServerProcess>> ServerProcess::Start(
    const std::string& program, uint64_t host_bytes, const std::string& scratch_dir,
    const std::function<bool()>& cancelled) {
  if (access(program.c_str(), X_OK) != 0) {
    return absl::NotFoundError(
        absl::StrCat(program, ": ", std::strerror(errno),
                     "; the demo starts the sketchkvd beside its own program, or uses --server"));
  }
  const std::string port_file = scratch_dir + "/port", log_file = scratch_dir + "/sketchkvd.log";
  ChildProcess::Options options;
  options.argv = {program,
                  "--listen",
                  "127.0.0.1:0",
                  "--port-file",
                  port_file,
                  "--host-bytes",
                  absl::StrCat(host_bytes),
                  "--drain-ms",
                  "2000"};
  options.log_file = log_file;
  absl::StatusOr<std::unique_ptr<ChildProcess>> process = ChildProcess::Start(options);
  if (!process.ok()) return process.status();
  std::unique_ptr<ServerProcess> server(new ServerProcess(*std::move(process), log_file));
  const auto deadline = std::chrono::steady_clock::now() + kStartTimeout;
  uint32_t port = 0;
  while (!absl::SimpleAtoi(ReadAll(port_file), &port)) {
    if (cancelled()) return absl::CancelledError("interrupted");
    if (const auto ended = server->process_->HowEnded()) {
      return server->ErrorWithLog(absl::StrCat("sketchkvd ended with ", *ended));
    }
    if (std::chrono::steady_clock::now() > deadline) {
      return server->ErrorWithLog(
          absl::StrCat("sketchkvd does not serve after ", kStartTimeout.count(), " s"));
    }
    std::this_thread::sleep_for(kPollPause);
  }
  server->address_ = absl::StrCat("127.0.0.1:", port);
  return server;
}

ServerProcess::~ServerProcess() { process_->Stop(kStopGrace); }

absl::Status ServerProcess::Stop() {
  const std::string how = process_->Stop(kStopGrace);
  if (how != "exit code 0") return ErrorWithLog(absl::StrCat("sketchkvd ended with ", how));
  return absl::OkStatus();
}

absl::Status ServerProcess::ErrorWithLog(const std::string& what) const {
  const std::string log = ReadAll(log_file_);
  return absl::InternalError(absl::StrCat(what, "; its log ends:\n",
                                          log.substr(log.size() - std::min(log.size(), kLogTail))));
}

}  // namespace sketchkv::demo
