#pragma once

#include "absl/status/status.h"
#include "client/cpp/src/core.h"

namespace sketchkv::client {

// Client::WaitUntilServing with its deadline given.
[[nodiscard]] absl::Status WaitUntilServing(ClientCore* core, TimePoint deadline);

}  // namespace sketchkv::client
