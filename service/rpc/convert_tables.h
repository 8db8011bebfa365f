#pragma once

#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "kernels/tables.h"
#include "service/engine/digest.h"
#include "sketchkv/v1/models.pb.h"

// Tables of a model: message <-> domain type. Errors are INVALID_ARGUMENT naming the field; sizes
// and numbers are checked by ModelTables::Create.
namespace sketchkv {

[[nodiscard]] absl::StatusOr<HeadTable> FromProto(const v1::HeadTable& message);
[[nodiscard]] v1::HeadTable ToProto(uint32_t layer, uint32_t head, const HeadTable& table);

// None for no bytes.
[[nodiscard]] absl::StatusOr<std::optional<Digest128>> DigestFromProto(const char* field,
                                                                       const std::string& bytes);

}  // namespace sketchkv
