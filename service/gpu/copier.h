#pragma once

#include <cstddef>
#include <span>

#include "absl/status/status.h"
#include "service/gpu/lane.h"

namespace sketchkv::gpu {

// Between ordinary memory and the card's, through a lane's pinned memory: while the card copies one
// half of it, this thread fills or empties the other. Waits until all is there.
[[nodiscard]] absl::Status CopyUp(Lane* lane, std::span<const std::byte> from, std::byte* to);
[[nodiscard]] absl::Status CopyDown(Lane* lane, std::span<const std::byte> from, std::byte* to);

}  // namespace sketchkv::gpu
