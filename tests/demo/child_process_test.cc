#include "client/cpp/demo/child_process.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <string>

#include "tests/testing/status_matchers.h"

namespace sketchkv::demo {
namespace {

ChildProcess::Options Shell(const std::string& script, bool capture = true) {
  ChildProcess::Options options;
  options.argv = {"/bin/sh", "-c", script};
  options.capture_stdout = capture;
  return options;
}

bool Never() { return false; }

TEST(ChildProcessTest, ReturnsWhatItPrints) {
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const auto process, ChildProcess::Start(Shell("printf 'a\\nb'")));
  EXPECT_THAT(process->Finish(Never), IsOk());
  EXPECT_EQ(process->HowEnded(), "exit code 0");
  // More than a pipe holds.
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const auto big,
                                ChildProcess::Start(Shell("head -c 300000 /dev/zero")));
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const std::string text, big->Finish(Never));
  EXPECT_EQ(text, std::string(300000, '\0'));
}

TEST(ChildProcessTest, SaysHowItFailed) {
  const struct {
    const char* script;
    const char* how;
  } cases[] = {{"exit 3", "exit code 3"}, {"kill -9 $$", "signal 9"}};
  for (const auto& one : cases) {
    SKETCHKV_ASSERT_OK_AND_ASSIGN(const auto process, ChildProcess::Start(Shell(one.script)));
    EXPECT_THAT(process->Finish(Never), StatusIs(absl::StatusCode::kInternal, {one.how}));
  }
  ChildProcess::Options missing;
  missing.argv = {"/no/such/program"};
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const auto process, ChildProcess::Start(missing));
  EXPECT_THAT(process->Finish(Never), StatusIs(absl::StatusCode::kInternal, {"exit code 127"}));
}

TEST(ChildProcessTest, IsStoppedWhenCancelled) {
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const auto process, ChildProcess::Start(Shell("exec sleep 600")));
  EXPECT_THAT(process->Finish([] { return true; }), StatusIs(absl::StatusCode::kCancelled));
  EXPECT_EQ(process->HowEnded(), "signal 15");
}

TEST(ChildProcessTest, IsKilledWhenItWillNotStop) {
  SKETCHKV_ASSERT_OK_AND_ASSIGN(
      const auto process,
      ChildProcess::Start(
          Shell("trap '' TERM; echo ready; exec 1>&-; while :; do sleep 0.05; done")));
  // Asked ten times a second at first, more often once its stdout has ended and the trap stands.
  int asked = 0;
  EXPECT_THAT(process->Finish([&] { return ++asked > 20; }),
              StatusIs(absl::StatusCode::kCancelled));
  EXPECT_EQ(process->HowEnded(), "signal 9");
}

TEST(ChildProcessTest, IgnoredSigchldLosesNoExitCode) {
  signal(SIGCHLD, SIG_IGN);
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const auto process, ChildProcess::Start(Shell("exit 3")));
  EXPECT_THAT(process->Finish(Never), StatusIs(absl::StatusCode::kInternal, {"exit code 3"}));
  // Ignored while it runs: the exit code is lost, its end is not.
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const auto other, ChildProcess::Start(Shell("sleep 0.2")));
  signal(SIGCHLD, SIG_IGN);
  EXPECT_THAT(other->Finish(Never), StatusIs(absl::StatusCode::kInternal, {"lost"}));
  signal(SIGCHLD, SIG_DFL);
}

TEST(ChildProcessTest, EndsWithItsObject) {
  pid_t pid = 0;
  {
    SKETCHKV_ASSERT_OK_AND_ASSIGN(const auto process,
                                  ChildProcess::Start(Shell("exec sleep 600", false)));
    pid = process->pid();
    EXPECT_EQ(kill(pid, 0), 0);
  }
  EXPECT_EQ(kill(pid, 0), -1);
  EXPECT_EQ(errno, ESRCH);
}

// A process that starts a child and dies at once takes the child with it.
TEST(ChildProcessTest, EndsWithTheProcessThatStartedIt) {
  int fds[2];
  ASSERT_EQ(pipe(fds), 0);
  const pid_t middle = fork();
  if (middle == 0) {
    close(fds[0]);
    const auto process = ChildProcess::Start(Shell("exec sleep 600", false));
    const pid_t pid = process.ok() ? (*process)->pid() : -1;
    (void)!write(fds[1], &pid, sizeof(pid));
    raise(SIGKILL);
  }
  close(fds[1]);
  pid_t grandchild = -1;
  ASSERT_EQ(read(fds[0], &grandchild, sizeof(grandchild)),
            static_cast<ssize_t>(sizeof(grandchild)));
  ASSERT_GT(grandchild, 0);
  // The grandchild holds the other end of the pipe: reading ends when it is gone.
  char end = 0;
  EXPECT_EQ(read(fds[0], &end, 1), 0);
  close(fds[0]);
  waitpid(middle, nullptr, 0);
}

}  // namespace
}  // namespace sketchkv::demo
