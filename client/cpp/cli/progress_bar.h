#pragma once

#include <chrono>
#include <cstdint>
#include <string>

namespace sketchkv::cli {

// A line on stderr that shows how far long work is. Silent where stderr is no terminal, and for
// work that ends within a quarter of a second.
class ProgressBar {
 public:
  ProgressBar(std::string what, uint64_t total);
  ~ProgressBar();  // clears the line
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;

  void Update(uint64_t done);

 private:
  const std::string what_;
  const uint64_t total_;
  const bool terminal_;
  const std::chrono::steady_clock::time_point begin_;
  bool drawn_ = false;
};

}  // namespace sketchkv::cli
