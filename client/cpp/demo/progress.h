#pragma once

#include <chrono>
#include <cstdint>
#include <string>

namespace sketchkv::demo {

// Progress of one stage on stderr: a bar that redraws itself on a terminal, lines elsewhere (the
// first, the last and about every tenth part between). Not thread-safe.
class Progress {
 public:
  Progress(std::string stage, uint32_t steps);
  ~Progress();  // ends the bar's line

  // Call when a step begins; `what` names it.
  void Step(const std::string& what);

 private:
  void Draw(const std::string& what, uint32_t done);

  const std::string stage_;
  const uint32_t steps_;
  const bool terminal_;
  const std::chrono::steady_clock::time_point start_;
  uint32_t begun_ = 0;
  uint32_t shown_tenths_ = 0;
};

}  // namespace sketchkv::demo
