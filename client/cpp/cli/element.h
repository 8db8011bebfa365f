#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "client/cpp/files/tensor.h"
#include "sketchkv/types.h"

namespace sketchkv::cli {

// "bf16", "fp16", "fp32", "fp8_e4m3", "fp8_e5m2", and back (INVALID_ARGUMENT).
[[nodiscard]] std::string ElementName(ElementType type);
[[nodiscard]] absl::StatusOr<ElementType> ParseElement(const std::string& name);

// The dtype name an array file gives the type: "BF16", ...
[[nodiscard]] std::string TensorDtype(ElementType type);

// Elements [begin, begin + count) of `tensor` as `type`, appended to `out`: the very bytes where
// the tensor has that type, else through float32, divided by `scale` for fp8 and rounded to
// nearest. INVALID_ARGUMENT for a tensor that is not of floats.
[[nodiscard]] absl::Status AppendAs(const NamedTensor& tensor, uint64_t begin, uint64_t count,
                                    ElementType type, float scale, std::vector<std::byte>* out);

}  // namespace sketchkv::cli
