#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "kernels/codec.h"
#include "sketchkv/types.h"
#include "sketchkv/v1/cache.pb.h"
#include "sketchkv/v1/models.pb.h"
#include "sketchkv/v1/types.pb.h"

namespace sketchkv::client {

[[nodiscard]] v1::KvLayout ToProto(const CacheLayout& layout);
[[nodiscard]] v1::ProfileRequest ToProto(const ProfileSpec& spec);
[[nodiscard]] v1::CellRange ToProto(const PartRange& range);
[[nodiscard]] v1::RawOrder ToProto(sketchkv::RawOrder order);
[[nodiscard]] v1::DType ToProto(ElementType type);
[[nodiscard]] v1::GpuMemoryRef ToProto(const GpuMemory& memory);

// INTERNAL for a model no server of this protocol would answer with: its numbers are used as sizes.
[[nodiscard]] absl::StatusOr<ModelInfo> FromProto(const v1::Model& model);
// INTERNAL naming the first field of a registered model's layout that is not as `asked`.
[[nodiscard]] absl::Status CheckLayoutAnswered(const CacheLayout& answered,
                                               const CacheLayout& asked);
[[nodiscard]] ServerStats FromProto(const v1::GetStatsResponse& stats);
[[nodiscard]] CacheEvent FromProto(const v1::WatchResponse& event);

// The kernels' words for a layout whose types are known.
[[nodiscard]] KvLayout KernelLayout(const CacheLayout& layout);

// The codec a model's resolved profiles stand for, for encoding in this process; `tables` are the
// model's, null when it has none. Errors as BlockCodec::Create; FAILED_PRECONDITION when this
// build's format version or sizes are not the server's.
[[nodiscard]] absl::StatusOr<std::unique_ptr<BlockCodec>> CodecOf(
    const v1::Model& model, std::shared_ptr<const ModelTables> tables);

}  // namespace sketchkv::client
