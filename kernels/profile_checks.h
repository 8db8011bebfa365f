#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "kernels/base/checked_math.h"
#include "kernels/format.h"
#include "kernels/profile.h"

// Checks that validating and resolving a profile share. All errors are INVALID_ARGUMENT and name
// the field, the value and its bound.
namespace sketchkv {

constexpr uint32_t kReleasedGroupTokens = 32;  // tokens sharing outliers in QJL's released code

[[nodiscard]] inline uint32_t WordsUp(uint32_t bits) {
  return static_cast<uint32_t>(RoundUp(bits, kWordBits));
}
[[nodiscard]] absl::Status OutOfBound(absl::string_view field, uint64_t value,
                                      absl::string_view bound);
[[nodiscard]] absl::Status CheckRange(absl::string_view field, uint64_t value, uint64_t low,
                                      uint64_t high, uint64_t step);
// Whether a projection or rotation is made from the profile's seed.
[[nodiscard]] bool UsesSeed(const CodecProfile& profile);

}  // namespace sketchkv
