#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "client/cpp/demo/report.h"

namespace sketchkv::demo {

struct DemoOptions {
  std::string server;     // empty: a sketchkvd of our own
  std::string text_file;  // empty: the model directory's held-out and sampled text
  std::string model_dir;  // empty: FindModelDir
  uint32_t segments = 12;
  std::vector<std::string> profiles = {"raw", "klt", "qjl3p", "qjl", "qjl-paper"};
};

// Path of this program and the directory it lies in.
[[nodiscard]] std::string ProgramPath();
// Where tiny-lm lies: ../share/sketchkv/tiny-lm beside an installed program, else the source tree
// this was built from. NOT_FOUND names both.
[[nodiscard]] absl::StatusOr<std::string> FindModelDir();

// Runs the prefill worker, the decode worker and the teacher-forced pass against a server and stops
// what it started. Progress on stderr. CANCELLED when interrupted; INVALID_ARGUMENT for options and
// texts; else what the workers, the server or the client say. Whether the bars hold is the
// report's.
[[nodiscard]] absl::StatusOr<Report> RunDemo(const DemoOptions& options);

}  // namespace sketchkv::demo
