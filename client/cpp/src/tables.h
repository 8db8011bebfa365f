#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "client/cpp/src/core.h"
#include "kernels/tables.h"
#include "sketchkv/model.h"
#include "sketchkv/v1/models.pb.h"

namespace sketchkv::client {

// Client::UploadTables with its deadline given. INTERNAL when the server's digest is another.
[[nodiscard]] absl::StatusOr<std::string> UploadTables(ClientCore* core, const CacheLayout& layout,
                                                       std::span<const HeadTableSpec> tables,
                                                       TimePoint deadline);

// The tables that `model` uses. DATA_LOSS when they have another digest than the model: damaged, or
// of a model that has taken its name since; INTERNAL when they are not those of its layout.
[[nodiscard]] absl::StatusOr<std::shared_ptr<const ModelTables>> FetchTables(ClientCore* core,
                                                                             const v1::Model& model,
                                                                             TimePoint deadline);

// In the order [layer][head].
[[nodiscard]] std::vector<HeadTableSpec> ToSpecs(const ModelTables& tables);

}  // namespace sketchkv::client
