#pragma once

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace sketchkv {

// CPU kernel variants. All give the same bytes and the same scores, to the bit.
enum class Isa { kScalar, kAvx2, kAvx512, kAvx512Vnni, kNeon };

// "scalar", "avx2", "avx512", "avx512-vnni", "neon"
[[nodiscard]] absl::string_view IsaName(Isa isa);
[[nodiscard]] bool IsaSupported(Isa isa);  // by this CPU and this build

// The best supported one for `forced` == "auto" (or empty), else the one named.
// INVALID_ARGUMENT for an unknown name, FAILED_PRECONDITION when the CPU lacks it.
[[nodiscard]] absl::StatusOr<Isa> ChooseIsa(absl::string_view forced);

}  // namespace sketchkv
