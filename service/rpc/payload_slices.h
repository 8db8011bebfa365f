#pragma once

#include <grpcpp/support/slice.h>

#include <memory>
#include <vector>

#include "service/engine/payload.h"

// Payloads of the engine and slices of gRPC refer to the same bytes.
namespace sketchkv {

[[nodiscard]] Payload PayloadOf(std::vector<grpc::Slice> slices);

// What owns the payload, and `hold`, live until gRPC has sent the slices or given up.
[[nodiscard]] std::vector<grpc::Slice> SlicesOf(const Payload& payload,
                                                const std::shared_ptr<void>& hold);

}  // namespace sketchkv
