#include "client/cpp/demo/child_process.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <thread>

#include "absl/strings/str_cat.h"

namespace sketchkv::demo {
namespace {

constexpr std::chrono::milliseconds kPollPause{20};
constexpr int kExecFailed = 127;

absl::Status ErrnoError(absl::string_view what) {
  return absl::InternalError(absl::StrCat(what, ": ", std::strerror(errno)));
}

// Runs in the child between fork and exec: only calls that are safe there.
[[noreturn]] void BecomeProgram(char* const* argv, int stdout_fd, int log_fd, pid_t parent) {
  prctl(PR_SET_PDEATHSIG, SIGTERM);
  if (getppid() != parent) _exit(kExecFailed);  // the parent died before prctl
  if (log_fd >= 0) {
    dup2(log_fd, STDOUT_FILENO);
    dup2(log_fd, STDERR_FILENO);
  }
  if (stdout_fd >= 0) dup2(stdout_fd, STDOUT_FILENO);
  execv(argv[0], argv);
  _exit(kExecFailed);
}

// In place of a wait status: the process has ended, but somebody else took its status.
constexpr int kStatusLost = -1;

std::string Describe(int wait_status) {
  if (wait_status == kStatusLost) return "an exit code that was lost";
  if (WIFSIGNALED(wait_status)) return absl::StrCat("signal ", WTERMSIG(wait_status));
  return absl::StrCat("exit code ", WEXITSTATUS(wait_status));
}

}  // namespace

absl::StatusOr<std::unique_ptr<ChildProcess>> ChildProcess::Start(const Options& options) {
  int pipe_fds[2] = {-1, -1};
  if (options.capture_stdout && pipe2(pipe_fds, O_CLOEXEC) != 0) return ErrnoError("pipe2");
  int log_fd = -1;
  if (!options.log_file.empty()) {
    log_fd = open(options.log_file.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (log_fd < 0) return ErrnoError(options.log_file);
  }
  std::vector<char*> argv;
  for (const std::string& arg : options.argv) argv.push_back(const_cast<char*>(arg.c_str()));
  argv.push_back(nullptr);
  // Where it is ignored, as a caller may leave it behind, no child has an exit code to wait for.
  signal(SIGCHLD, SIG_DFL);
  const pid_t parent = getpid();
  const pid_t pid = fork();
  if (pid == 0) BecomeProgram(argv.data(), pipe_fds[1], log_fd, parent);
  const int fork_errno = errno;
  if (log_fd >= 0) close(log_fd);
  if (pipe_fds[1] >= 0) close(pipe_fds[1]);
  if (pid < 0) {
    if (pipe_fds[0] >= 0) close(pipe_fds[0]);
    errno = fork_errno;
    return ErrnoError("fork");
  }
  return std::unique_ptr<ChildProcess>(new ChildProcess(pid, pipe_fds[0]));
}

ChildProcess::~ChildProcess() {
  Stop(std::chrono::milliseconds(0));
  if (stdout_fd_ >= 0) close(stdout_fd_);
}

std::optional<std::string> ChildProcess::HowEnded() {
  if (!wait_status_) {
    int status = 0;
    const pid_t ended = waitpid(pid_, &status, WNOHANG);
    if (ended == pid_) {
      wait_status_ = status;
    } else if (ended < 0 && errno == ECHILD) {
      wait_status_ = kStatusLost;
    } else {
      return std::nullopt;
    }
  }
  return Describe(*wait_status_);
}

absl::StatusOr<std::string> ChildProcess::Finish(const std::function<bool()>& cancelled) {
  std::string text;
  char buffer[4096];
  bool open = stdout_fd_ >= 0;
  while (open || !HowEnded()) {
    if (cancelled()) {
      Stop(std::chrono::seconds(2));
      return absl::CancelledError("interrupted");
    }
    if (!open) {
      std::this_thread::sleep_for(kPollPause);
      continue;
    }
    pollfd poll_fd{stdout_fd_, POLLIN, 0};
    if (poll(&poll_fd, 1, 100) <= 0) continue;
    const ssize_t got = read(stdout_fd_, buffer, sizeof(buffer));
    if (got < 0 && errno == EINTR) continue;
    open = got > 0;
    if (open) text.append(buffer, static_cast<size_t>(got));
  }
  if (*wait_status_ != 0) return absl::InternalError(absl::StrCat("ended with ", *HowEnded()));
  return text;
}

std::string ChildProcess::Stop(std::chrono::milliseconds grace) {
  const auto deadline = std::chrono::steady_clock::now() + grace;
  if (!HowEnded() && grace.count() > 0) kill(pid_, SIGTERM);
  while (!HowEnded() && std::chrono::steady_clock::now() < deadline) {
    std::this_thread::sleep_for(kPollPause);
  }
  if (!HowEnded()) kill(pid_, SIGKILL);
  while (!HowEnded()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  return *HowEnded();
}

}  // namespace sketchkv::demo
