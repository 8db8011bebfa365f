#pragma once

#include <cstddef>
#include <span>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "service/engine/gpu.h"
#include "service/rpc/service_context.h"
#include "sketchkv/v1/types.pb.h"

namespace sketchkv {

// What of a message can be checked at once, without waiting for the card. `field` names the message
// in errors. UNAVAILABLE: this server has no card. INVALID_ARGUMENT naming the field and both
// numbers.
[[nodiscard]] absl::Status CheckGpuMemoryRef(const ServiceContext& service, absl::string_view field,
                                             const v1::GpuMemoryRef& ref);

// The bytes named by a message, open as long as the answer lives. Waits for the card where they
// were not open: not for a reactor. Errors as above and as Gpu::OpenShared.
[[nodiscard]] absl::StatusOr<GpuBytes> OpenGpuMemory(const ServiceContext& service,
                                                     absl::string_view field,
                                                     const v1::GpuMemoryRef& ref);

}  // namespace sketchkv
