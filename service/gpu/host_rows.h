#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

#include "absl/status/status.h"
#include "service/engine/gpu.h"
#include "service/engine/payload.h"
#include "service/gpu/gpu_model.h"
#include "service/gpu/lane.h"

namespace sketchkv::gpu {

// Whether such a part's rows fit the staging area, layer by layer, and are worth the way.
[[nodiscard]] bool TakesHostRows(const GpuPart& part, uint64_t payload_bytes);

// Encodes raw rows that lie on the host into a part's slot on the card: some layers at a time, in
// both halves of the lane's staging area in turn, so that rows are copied to the one while the card
// takes what is in the other. `reading(end)`: before bytes up to `end` are read, in order.
// `refused` as GpuEncoding's. Only for what TakesHostRows.
[[nodiscard]] absl::Status EncodeHostRows(Lane* lane, const GpuModel& model, const GpuPart& part,
                                          const Payload& payload,
                                          const std::function<void(uint64_t end)>& reading,
                                          absl::Status* refused);

}  // namespace sketchkv::gpu
