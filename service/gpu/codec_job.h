#pragma once

#include "absl/status/status.h"
#include "service/engine/gpu.h"
#include "service/gpu/gpu_model.h"
#include "service/gpu/lane.h"

namespace sketchkv::gpu {

// Rows at `payload` on the card to cells, and their checksums. Errors as Gpu::Encode.
[[nodiscard]] absl::Status EncodeOn(Lane* lane, const GpuModel& model, const GpuPart& part,
                                    const std::byte* payload);
// Cells to rows at `payload` on the card; checksums of the cells.
[[nodiscard]] absl::Status DecodeOn(Lane* lane, const GpuModel& model, const GpuPart& part,
                                    DType dtype, std::byte* payload);

}  // namespace sketchkv::gpu
