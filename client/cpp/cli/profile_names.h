#pragma once

#include <cstddef>
#include <optional>

#include "absl/strings/string_view.h"
#include "sketchkv/types.h"

namespace sketchkv::cli {

// The words of the command line for a profile's choices: those of the numbers 1, 2, ... of the
// enum.
inline constexpr absl::string_view kProjectionNames[] = {"hadamard", "orthogonal", "gaussian",
                                                         "basis"};
inline constexpr absl::string_view kScaleNames[] = {"exact", "norm", "least_squares"};
inline constexpr absl::string_view kCenterNames[] = {"none", "table", "block"};
inline constexpr absl::string_view kOutlierSourceNames[] = {"block", "table"};
inline constexpr absl::string_view kValueNames[] = {"raw", "minmax", "rotated", "basis"};
inline constexpr absl::string_view kKeyNames[] = {"raw", "sketch", "codes"};

// None when `name` is not among `names`.
template <typename Choice, size_t N>
[[nodiscard]] std::optional<Choice> ChoiceNamed(const absl::string_view (&names)[N],
                                                absl::string_view name) {
  for (size_t i = 0; i < N; ++i) {
    if (names[i] == name) return static_cast<Choice>(i + 1);
  }
  return std::nullopt;
}

// "" for none.
template <typename Choice, size_t N>
[[nodiscard]] absl::string_view NameOf(const absl::string_view (&names)[N],
                                       const std::optional<Choice>& choice) {
  return choice ? names[static_cast<size_t>(*choice) - 1] : absl::string_view();
}

}  // namespace sketchkv::cli
