#pragma once

#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "client/cpp/src/core.h"
#include "client/cpp/src/model_cache.h"
#include "client/cpp/src/segment_source.h"
#include "sketchkv/types.h"

namespace sketchkv::client {

// Client::PutAll with its deadline given.
[[nodiscard]] std::vector<absl::StatusOr<PutResult>> PutParts(ClientCore* core, ModelCache* models,
                                                              SegmentSource* segments,
                                                              std::span<const PutPart> parts,
                                                              TimePoint deadline);

// Hashes, tokens, range and payload size of a part; returns its range resolved. INVALID_ARGUMENT
// names the field and both numbers.
[[nodiscard]] absl::StatusOr<PartRange> CheckPart(const PutPart& part, const ModelInfo& model);

// The layout a part's payload travels under; `encoded` as on the wire.
[[nodiscard]] v1::PartLayout LayoutOf(const PutPart& part, const PartRange& range,
                                      const CachedModel& model, bool encoded);

}  // namespace sketchkv::client
