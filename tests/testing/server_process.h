#pragma once

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

namespace sketchkv {

// A sketchkvd (the macro SKETCHKVD names the program) on a free loopback port; stopped with this.
class ServerProcess {
 public:
  explicit ServerProcess(std::vector<std::string> flags) {
    static int number = 0;
    port_file_ =
        std::filesystem::path(::testing::TempDir()) /
        ("sketchkv_server_" + std::to_string(getpid()) + "_" + std::to_string(number++) + "_port");
    std::filesystem::remove(port_file_);
    flags.insert(flags.begin(), {SKETCHKVD, "--listen", "127.0.0.1:0", "--port-file",
                                 port_file_.string(), "--log-level", "warn"});
    pid_ = fork();
    if (pid_ == 0) {
      prctl(PR_SET_PDEATHSIG, SIGKILL);
      std::vector<char*> argv;
      for (std::string& flag : flags) argv.push_back(flag.data());
      argv.push_back(nullptr);
      execv(argv[0], argv.data());
      _exit(127);
    }
    for (int i = 0; i < 3000 && !std::filesystem::exists(port_file_); ++i) {
      int status = 0;
      if (waitpid(pid_, &status, WNOHANG) == pid_) {
        pid_ = 0;
        ADD_FAILURE() << SKETCHKVD << " ended before it listened, wait status " << status;
        return;
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    std::ifstream(port_file_) >> port_;
  }
  ~ServerProcess() {
    if (pid_ > 0) {
      kill(pid_, SIGTERM);
      waitpid(pid_, nullptr, 0);
    }
    std::filesystem::remove(port_file_);
  }
  ServerProcess(const ServerProcess&) = delete;
  ServerProcess& operator=(const ServerProcess&) = delete;

  [[nodiscard]] int port() const { return port_; }
  [[nodiscard]] std::string target() const { return "127.0.0.1:" + std::to_string(port_); }
  // The most this process ever had in memory.
  [[nodiscard]] uint64_t PeakBytes() const {
    std::ifstream status("/proc/" + std::to_string(pid_) + "/status");
    for (std::string line; std::getline(status, line);) {
      uint64_t kib = 0;
      if (std::sscanf(line.c_str(), "VmHWM: %lu kB", &kib) == 1) return kib * 1024;
    }
    return 0;
  }

 private:
  std::filesystem::path port_file_;
  pid_t pid_ = 0;  // 0: it has ended
  int port_ = 0;
};

}  // namespace sketchkv
