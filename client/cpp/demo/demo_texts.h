#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "client/cpp/demo/demo_run.h"

namespace sketchkv::demo {

// The texts of one run.
struct DemoTexts {
  std::vector<uint8_t> prompt;                 // kPromptBytes bytes
  std::vector<std::vector<uint8_t>> segments;  // of kSegmentBytes bytes each
  std::string description;                     // of the segments, for people
};

// The prompt is the first text's beginning. With options.text_file: its first segments, at most
// options.segments. Otherwise options.segments, half of them held out and half sampled (the odd one
// held out). INVALID_ARGUMENT when there is less text than that; NOT_FOUND for a missing file.
[[nodiscard]] absl::StatusOr<DemoTexts> ReadTexts(const DemoOptions& options);

}  // namespace sketchkv::demo
