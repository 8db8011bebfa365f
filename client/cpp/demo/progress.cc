#include "client/cpp/demo/progress.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <utility>

#include "absl/strings/str_format.h"

namespace sketchkv::demo {
namespace {

constexpr uint32_t kBarCells = 30;

}  // namespace

Progress::Progress(std::string stage, uint32_t steps)
    : stage_(std::move(stage)),
      steps_(std::max(steps, 1u)),
      terminal_(isatty(STDERR_FILENO) == 1),
      start_(std::chrono::steady_clock::now()) {}

Progress::~Progress() {
  if (terminal_ && begun_ > 0) {
    if (begun_ == steps_) Draw("done", steps_);
    std::fputc('\n', stderr);
  }
}

void Progress::Step(const std::string& what) {
  const uint32_t done = begun_++;
  const uint32_t tenths = begun_ * 10 / steps_;
  if (terminal_ || done == 0 || tenths != shown_tenths_) Draw(what, done);
  shown_tenths_ = tenths;
}

void Progress::Draw(const std::string& what, uint32_t done) {
  const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start_;
  std::string line;
  if (terminal_) {
    const uint32_t full = kBarCells * std::min(done, steps_) / steps_;
    line = absl::StrFormat("\r\x1b[K%s [%s%s] %u/%u %s", stage_, std::string(full, '#'),
                           std::string(kBarCells - full, '.'), done, steps_, what);
  } else {
    line = absl::StrFormat("%s: step %u of %u: %s (%.1f s)\n", stage_, done + 1, steps_, what,
                           elapsed.count());
  }
  std::fputs(line.c_str(), stderr);
  std::fflush(stderr);
}

}  // namespace sketchkv::demo
