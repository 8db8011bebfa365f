#pragma once

#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "client/cpp/tune/candidates.h"
#include "client/cpp/tune/spectrum.h"
#include "kernels/codec.h"

namespace sketchkv::tune {

// What the calibration part of the samples says of one (layer, kv head).
struct HeadSpectra {
  Spectrum keys;
  Spectrum values;
};

// Outlier channels a table has for profiles that were not asked for another number.
inline constexpr uint32_t kDefaultOutliers = 4;

// The table of one head with what `encoding` wants of it: the key mean and the outlier channels in
// any case, bases only where it has row bits. INVALID_ARGUMENT when no basis has just these.
[[nodiscard]] absl::StatusOr<HeadTable> MakeHeadTable(const HeadSpectra& spectra,
                                                      const Encoding& encoding);

// The codec of one head of `layer` alone: a layout of one layer and head, else as `model`.
[[nodiscard]] absl::StatusOr<std::unique_ptr<BlockCodec>> OneHeadCodec(const KvLayout& model,
                                                                       uint32_t layer,
                                                                       const Encoding& encoding,
                                                                       HeadTable table);

}  // namespace sketchkv::tune
