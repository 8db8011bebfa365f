#include "client/cpp/demo/demo_texts.h"

#include <algorithm>
#include <filesystem>
#include <span>

#include "absl/strings/str_cat.h"
#include "client/cpp/demo/setting.h"
#include "kernels/base/status_macros.h"

namespace sketchkv::demo {
namespace {

std::string CountSegments(size_t count) {
  return absl::StrCat(count, count == 1 ? " segment of " : " segments of ", kSegmentBytes,
                      " bytes");
}

void AddSegments(std::span<const uint8_t> text, size_t count, DemoTexts* texts) {
  for (size_t i = 0; i < count; ++i) {
    const auto segment = text.subspan(i * kSegmentBytes, kSegmentBytes);
    texts->segments.emplace_back(segment.begin(), segment.end());
  }
}

}  // namespace

absl::StatusOr<DemoTexts> ReadTexts(const DemoOptions& options) {
  if (options.segments == 0) return absl::InvalidArgumentError("segments: 0, must be at least 1");
  DemoTexts texts;
  std::vector<uint8_t> first;
  if (!options.text_file.empty()) {
    SKETCHKV_ASSIGN_OR_RETURN(first, ReadText(options.text_file, kSegmentBytes));
    const size_t count = std::min<size_t>(options.segments, first.size() / kSegmentBytes);
    AddSegments(first, count, &texts);
    texts.description = absl::StrCat(CountSegments(count), " of ",
                                     std::filesystem::path(options.text_file).filename().string());
  } else {
    const size_t sampled = options.segments / 2, held_out = options.segments - sampled;
    SKETCHKV_ASSIGN_OR_RETURN(
        first, ReadText(options.model_dir + "/heldout.txt", held_out * kSegmentBytes));
    SKETCHKV_ASSIGN_OR_RETURN(const std::vector<uint8_t> second,
                              ReadText(options.model_dir + "/sample.txt", sampled * kSegmentBytes));
    AddSegments(first, held_out, &texts);
    AddSegments(second, sampled, &texts);
    texts.description = absl::StrCat(CountSegments(options.segments), " (", held_out, " held out, ",
                                     sampled, " sampled)");
  }
  absl::StrAppend(&texts.description, ", of each the first ", kStoredTokens,
                  " stored and the rest in the exact recent window");
  texts.prompt.assign(first.begin(), first.begin() + kPromptBytes);
  return texts;
}

}  // namespace sketchkv::demo
