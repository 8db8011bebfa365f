#pragma once

#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "client/cpp/src/core.h"
#include "client/cpp/src/model_cache.h"
#include "client/cpp/src/segment_source.h"
#include "sketchkv/types.h"

namespace sketchkv::client {

// Client::GetAll with its deadline given.
[[nodiscard]] std::vector<absl::StatusOr<GetResult>> GetParts(ClientCore* core, ModelCache* models,
                                                              SegmentSource* segments,
                                                              std::span<const GetPart> parts,
                                                              TimePoint deadline);

}  // namespace sketchkv::client
