#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "sketchkv/types.h"

namespace sketchkv::cli {

inline constexpr char kProfileHelp[] =
    "NAME or NAME:KEY=VALUE,...: raw, qjl, qjl-paper, qjl2p, qjl3p (default), qjl4p or klt with "
    "knobs layers=BEGIN+COUNT, sign_bits, outliers, outlier_sign_bits, value_bits, "
    "value_group_size, seed, projection=hadamard|orthogonal|gaussian, scale=exact|least_squares, "
    "center=none|table|block, outlier_source=block|table, values=minmax|rotated|basis|raw, "
    "value_scale=exact|least_squares; may be "
    "repeated for layer ranges";

// Parses one --profile. INVALID_ARGUMENT naming the knob.
[[nodiscard]] absl::StatusOr<ProfileSpec> ParseProfileSpec(const std::string& text);

}  // namespace sketchkv::cli
