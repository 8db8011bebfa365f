#pragma once

#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "service/engine/attention.h"
#include "service/engine/model_registry.h"
#include "service/engine/part.h"
#include "service/pool/event_log.h"
#include "sketchkv/v1/attention.pb.h"
#include "sketchkv/v1/cache.pb.h"
#include "sketchkv/v1/codec.pb.h"
#include "sketchkv/v1/models.pb.h"

// Message <-> domain type. Errors are INVALID_ARGUMENT naming the field; what depends on the model is
// checked by the engine.
namespace sketchkv {

[[nodiscard]] absl::StatusOr<KvLayout> FromProto(const v1::KvLayout& message);
[[nodiscard]] absl::StatusOr<LayerProfileRequest> FromProto(const v1::ProfileRequest& message);
[[nodiscard]] PartLayout FromProto(const v1::PartLayout& message);
[[nodiscard]] CellRange FromProto(const v1::CellRange& message);
[[nodiscard]] absl::StatusOr<BlockHash> HashFromProto(const char* field, const std::string& bytes);
[[nodiscard]] absl::StatusOr<DType> FromProto(const char* field, v1::DType dtype);
[[nodiscard]] absl::StatusOr<RawOrder> FromProto(const char* field, v1::RawOrder order);

[[nodiscard]] v1::Model ToProto(const Model& model);
[[nodiscard]] v1::PartLayout ToProto(const PartLayout& part, bool encoded);

// The views of the request's queries point into `message`, or into `aligned` where its bytes are not
// aligned for float; both must live as long as the request.
[[nodiscard]] absl::StatusOr<AttentionRequest> FromProto(const v1::AttentionRequest& message,
                                                         std::shared_ptr<const Model> model,
                                                         std::vector<float>* aligned);

}  // namespace sketchkv
