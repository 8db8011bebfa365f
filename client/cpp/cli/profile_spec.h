#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "sketchkv/types.h"

namespace sketchkv::cli {

inline constexpr char kProfileHelp[] =
    "NAME or NAME:KEY=VALUE,...: raw, qjl or qjl-paper with knobs layers=BEGIN+COUNT, sign_bits, "
    "outliers, outlier_sign_bits, value_bits, value_group_size, seed, "
    "projection=hadamard|orthogonal|"
    "gaussian; may be repeated for layer ranges";

// Parses one --profile. INVALID_ARGUMENT naming the knob.
[[nodiscard]] absl::StatusOr<ProfileSpec> ParseProfileSpec(const std::string& text);

}  // namespace sketchkv::cli
