#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "client/cpp/tune/samples.h"
#include "kernels/codec.h"

namespace sketchkv::tune {

// |o^ - o| / |o| of each query: o is exact attention, o^ what a codec makes of it.
struct HalfErrors {
  std::vector<double> keys;    // scores from the codec, values exact
  std::vector<double> values;  // values from the codec, weights exact
};

// Held-out keys, values and queries of one kv head, with what exact attention makes of them.
// Immutable and thread-safe.
//
// Queries stand in the second half of each sequence, evenly, since a cache is for long contexts.
// Each attends over all tokens up to its own, at 1 / sqrt(head_dim): the last 64 (at most half) and
// its own are exact, as an engine has them beside the cache, those before come from encoded blocks.
class HeldOutHead {
 public:
  // INVALID_ARGUMENT when no sequence has two tokens, or as Samples says.
  [[nodiscard]] static absl::StatusOr<HeldOutHead> Load(const Samples& samples, uint32_t layer,
                                                        uint32_t head,
                                                        std::span<const TokenRange> sequences,
                                                        uint32_t max_queries);

  // What blocks encoded by `codec` do to attention, keys and values apart: sqrt(keys^2 + values^2)
  // of a query is close to what they do together, as their errors are independent. `block_tokens`
  // is the codec's; its layout has the samples' dims and cache dtypes.
  [[nodiscard]] absl::StatusOr<HalfErrors> MeasureHalves(const CellCodec& codec,
                                                         uint32_t block_tokens) const;

  // What both do together, by the codec's own attention: the mean over the queries.
  [[nodiscard]] absl::StatusOr<double> Measure(const CellCodec& codec, uint32_t block_tokens) const;

 private:
  struct Sequence {
    uint64_t num_tokens = 0;
    std::vector<std::byte> key_rows;    // [tokens, head_dim] of the cache dtype
    std::vector<std::byte> value_rows;  // [tokens, value_dim] likewise
    std::vector<float> values;          // [tokens, value_dim]
    std::vector<uint64_t> positions;    // of each query
    std::vector<float> queries;         // [queries, head_dim]
    std::vector<float> scores;          // [queries, tokens], exact
    std::vector<float> out;             // [queries, value_dim], exact
  };

  // What a codec makes of a sequence.
  struct Decoded {
    std::vector<float> scores;  // [queries, tokens]
    std::vector<float> values;  // [tokens, value_dim]
  };

  HeldOutHead() = default;
  [[nodiscard]] absl::StatusOr<std::vector<std::byte>> Encode(const CellCodec& codec,
                                                              const Sequence& sequence,
                                                              uint32_t block_tokens) const;
  [[nodiscard]] absl::StatusOr<Decoded> ScoreAndDecode(const CellCodec& codec,
                                                       const Sequence& sequence,
                                                       uint32_t block_tokens) const;
  [[nodiscard]] std::vector<float> Weights(std::vector<float> scores,
                                           const Sequence& sequence) const;
  void AttendRecent(const Sequence& sequence, size_t query, float* out, float* lse) const;
  void AppendErrors(const Sequence& sequence, std::span<const float> out,
                    std::vector<double>* errors) const;

  uint32_t head_dim_ = 0;
  uint32_t value_dim_ = 0;
  uint64_t num_queries_ = 0;
  std::vector<Sequence> sequences_;
};

}  // namespace sketchkv::tune
