#pragma once

#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/layout.h"
#include "kernels/profile.h"
#include "kernels/tables.h"
#include "sketchkv/types.h"

namespace sketchkv::tune {

// What the public spec asks of the codec; the layers it is for are left out.
[[nodiscard]] ProfileRequest RequestOf(const ProfileSpec& spec);

// The profile of each layer from texts as --profile takes them, as a server resolves them: together
// they cover each layer once. `tables` may be null. INVALID_ARGUMENT naming knob, layer or both.
[[nodiscard]] absl::StatusOr<std::vector<CodecProfile>> ResolveTexts(
    std::span<const std::string> texts, const KvLayout& layout, const ModelTables* tables);

}  // namespace sketchkv::tune
