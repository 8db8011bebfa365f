#include "client/cpp/cli/progress_bar.h"

#include <unistd.h>

#include <iostream>
#include <utility>

#include "absl/strings/str_format.h"

namespace sketchkv::cli {
namespace {

constexpr size_t kWidth = 30;
constexpr std::chrono::milliseconds kQuiet{250};

}  // namespace

ProgressBar::ProgressBar(std::string what, uint64_t total)
    : what_(std::move(what)),
      total_(total),
      terminal_(isatty(STDERR_FILENO) == 1),
      begin_(std::chrono::steady_clock::now()) {}

ProgressBar::~ProgressBar() {
  if (drawn_) std::cerr << "\r\033[K" << std::flush;
}

void ProgressBar::Update(uint64_t done) {
  if (!terminal_ || total_ == 0 || std::chrono::steady_clock::now() - begin_ < kQuiet) return;
  drawn_ = true;
  const size_t filled = kWidth * done / total_;
  std::cerr << absl::StrFormat("\r%s [%s%s] %d/%d", what_, std::string(filled, '#'),
                               std::string(kWidth - filled, '.'), done, total_)
            << std::flush;
}

}  // namespace sketchkv::cli
