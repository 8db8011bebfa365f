#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/profile.h"

namespace sketchkv::tune {

// A profile as the blocks of one layer are encoded with it. Row bits are those of keys and values
// that are stored in a basis, else 0.
struct Encoding {
  ProfileRequest request;
  uint32_t key_row_bits = 0;
  uint32_t value_row_bits = 0;
};

// A way to store a layer. Its error is put together from two encodings, one with its keys and one
// with its values, so that a grid of keys x values takes no more encodings than its longer side.
struct Candidate {
  std::string profile;  // as --profile takes it, without layers
  Encoding encoding;
  size_t keys_of = 0;    // index of the encoding that has its keys
  size_t values_of = 0;  // likewise its values
  uint32_t layer_begin = 0;
  uint32_t layer_count = 0;  // 0: all from layer_begin on

  [[nodiscard]] bool Covers(uint32_t layer) const {
    return layer >= layer_begin && (layer_count == 0 || layer - layer_begin < layer_count);
  }
};

struct CandidateSet {
  std::vector<Encoding> encodings;
  std::vector<Candidate> candidates;
};

// What is tried when nothing is asked for: qjl2p, qjl3p and qjl4p about the registered mean, each
// with rotated values of 2, 3 and 4 bits; and klt with keys x values of 1 to 4 bits a number.
[[nodiscard]] absl::StatusOr<CandidateSet> DefaultCandidates(uint32_t head_dim, uint32_t value_dim);

// The `profiles` alone, what is stored in a basis at all its sizes. INVALID_ARGUMENT naming the
// knob for bad ones.
[[nodiscard]] absl::StatusOr<CandidateSet> CandidatesOf(std::span<const std::string> profiles,
                                                        uint32_t head_dim, uint32_t value_dim);

// `profile` (klt or a variant of it, or empty for klt) with just these row bits.
[[nodiscard]] absl::StatusOr<CandidateSet> FixedCandidate(const std::string& profile,
                                                          uint32_t key_row_bits,
                                                          uint32_t value_row_bits);

// Texts for --profile, one a run of equal profiles: "klt:layers=0+4". `layers` has one a layer.
[[nodiscard]] std::vector<std::string> ByLayerRange(std::span<const std::string> layers);

}  // namespace sketchkv::tune
