#pragma once

#include <cstdint>

#include "absl/status/statusor.h"
#include "client/cpp/tune/bit_allotment.h"
#include "client/cpp/tune/spectrum.h"
#include "kernels/tables.h"

namespace sketchkv::tune {

// The basis in which a row of one head is stored in exactly `row_bits` bits: the principal axes,
// bits allotted by importance, and the axes of equal bits mixed by a random rotation drawn from
// `seed`, which makes their coordinates Gaussian and of equal RMS, as the codes want them. Rows are
// rounded as a file of tables rounds them. INVALID_ARGUMENT naming row_bits and what is near it
// when no allotment takes just as many.
[[nodiscard]] absl::StatusOr<Basis> MakeBasis(const Spectrum& spectrum, RowKind kind,
                                              uint32_t row_bits, uint64_t seed);

}  // namespace sketchkv::tune
