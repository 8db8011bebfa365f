#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "client/cpp/files/tables_file.h"
#include "client/cpp/tune/parallel.h"
#include "client/cpp/tune/samples.h"
#include "kernels/codec.h"

namespace sketchkv::tune {

// What is wanted: exactly one of target_error, target_bits and the two row bits.
struct TuneOptions {
  std::optional<double> target_error;  // of each layer, at the fewest bits
  std::optional<double> target_bits;   // a number, averaged over the layers, at the least error
  // klt with just these stored bits of a row in all layers; no search.
  std::optional<uint32_t> key_row_bits, value_row_bits;
  std::vector<std::string> profiles;  // candidates, as --profile takes them; empty: the usual ones
  uint32_t block_tokens = 64;
  double holdout = 0.25;  // last part of the tokens, which the error is measured on
  uint32_t num_threads = 1;
};

// What a candidate does in a layer. Errors: mean over the kv heads of the mean over queries of
// |o^ - o| / |o|, attention's output against the exact one on held-out tokens, all but the most
// recent of which come from blocks.
struct CandidateFigures {
  std::string profile;
  uint32_t key_row_bits = 0;  // of the basis in the tables, 0 without one
  uint32_t value_row_bits = 0;
  BitsPerNumber bits;                    // exact, of blocks of block_tokens
  double key_error = 0;                  // of the keys alone
  double value_error = 0;                // of the values alone
  double error = 0;                      // of both: of sqrt(key^2 + value^2) of each query
  std::optional<double> measured_error;  // of both at once, where that was measured
  uint32_t worst_head = 0;
  double worst_head_error = 0;

  [[nodiscard]] double best_known_error() const { return measured_error.value_or(error); }
};

struct LayerFigures {
  std::vector<CandidateFigures> candidates;
  size_t chosen = 0;
  double outlier_ratio = 0;  // of the head with most: energy of the largest channel to the median
};

struct TuneResult {
  TablesFile tables;
  std::vector<LayerFigures> layers;
  BitsPerNumber bits;          // of the model as chosen
  uint64_t slot_bytes = 0;     // of a block, likewise
  uint64_t raw_bytes = 0;      // of a block as it comes
  double predicted_error = 0;  // mean over layers of what the candidates promised
  double measured_error = 0;   // likewise, measured with keys and values at once
  uint32_t block_tokens = 0;
  uint64_t calibration_tokens = 0;
  uint64_t held_out_tokens = 0;
  uint64_t queries_per_head = 0;
  std::vector<std::string> warnings;
};

// Makes tables from the first part of the samples, measures the candidates with the real codec on
// the rest, and chooses a profile for each layer. Where a layer's choice turns out to miss
// target_error when keys and values are measured at once, the next candidate is taken. Thread-safe.
// INVALID_ARGUMENT for bad options and samples; FAILED_PRECONDITION with both numbers when the
// target cannot be met.
[[nodiscard]] absl::StatusOr<TuneResult> Tune(const Samples& samples, const TuneOptions& options,
                                              const Progress& progress = {});

}  // namespace sketchkv::tune
