#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "client/cpp/tune/candidates.h"
#include "client/cpp/tune/head_codec.h"
#include "client/cpp/tune/held_out_head.h"
#include "client/cpp/tune/samples.h"

namespace sketchkv::tune {

// Everything the choice needs to know of one (layer, kv head).
struct HeadStudy {
  HeadSpectra spectra;
  std::vector<HalfErrors> errors;  // of each encoding
};

// Queries a kv head is measured with: enough for a steady mean, few enough that weights over long
// contexts stay small.
[[nodiscard]] uint32_t MaxQueries(std::span<const TokenRange> held_out);

// Makes the spectra of the calibration part and measures each encoding on the held-out part.
[[nodiscard]] absl::StatusOr<HeadStudy> StudyHead(const Samples& samples, const Split& split,
                                                  const KvLayout& layout, uint32_t layer,
                                                  uint32_t head,
                                                  std::span<const Encoding> encodings);

}  // namespace sketchkv::tune
