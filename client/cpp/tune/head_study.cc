#include "client/cpp/tune/head_study.h"

#include <algorithm>
#include <memory>
#include <utility>

#include "kernels/base/status_macros.h"

namespace sketchkv::tune {
namespace {

constexpr uint64_t kQueries = 256;
constexpr uint64_t kLeastQueries = 16;
constexpr uint64_t kMostWeights = uint64_t{1} << 24;
constexpr uint64_t kChunkTokens = 4096;

absl::StatusOr<HeadSpectra> MakeSpectra(const Samples& samples, std::span<const TokenRange> ranges,
                                        uint32_t layer, uint32_t head) {
  Moments keys(samples.head_dim()), queries(samples.head_dim()), values(samples.value_dim());
  for (const TokenRange& range : ranges) {
    for (uint64_t begin = range.begin; begin < range.end; begin += kChunkTokens) {
      const TokenRange chunk = {begin, std::min(begin + kChunkTokens, range.end)};
      SKETCHKV_ASSIGN_OR_RETURN(const std::vector<float> k, samples.Keys(layer, head, chunk));
      keys.Add(k);
      SKETCHKV_ASSIGN_OR_RETURN(const std::vector<float> q, samples.Queries(layer, head, chunk));
      queries.Add(q);
      SKETCHKV_ASSIGN_OR_RETURN(const std::vector<float> v, samples.Values(layer, head, chunk));
      values.Add(v);
    }
  }
  return HeadSpectra{KeySpectrum(keys, queries), ValueSpectrum(values)};
}

}  // namespace

uint32_t MaxQueries(std::span<const TokenRange> held_out) {
  uint64_t longest = 1;
  for (const TokenRange& sequence : held_out) longest = std::max(longest, sequence.size());
  return static_cast<uint32_t>(std::clamp(kMostWeights / longest, kLeastQueries, kQueries));
}

absl::StatusOr<HeadStudy> StudyHead(const Samples& samples, const Split& split,
                                    const KvLayout& layout, uint32_t layer, uint32_t head,
                                    std::span<const Encoding> encodings) {
  HeadStudy study;
  SKETCHKV_ASSIGN_OR_RETURN(study.spectra, MakeSpectra(samples, split.calibration, layer, head));
  SKETCHKV_ASSIGN_OR_RETURN(
      const HeldOutHead held_out,
      HeldOutHead::Load(samples, layer, head, split.held_out, MaxQueries(split.held_out)));
  for (const Encoding& encoding : encodings) {
    SKETCHKV_ASSIGN_OR_RETURN(HeadTable table, MakeHeadTable(study.spectra, encoding));
    SKETCHKV_ASSIGN_OR_RETURN(const std::unique_ptr<BlockCodec> codec,
                              OneHeadCodec(layout, layer, encoding, std::move(table)));
    SKETCHKV_ASSIGN_OR_RETURN(HalfErrors errors,
                              held_out.MeasureHalves(codec->cell(0, 0), layout.block_tokens));
    study.errors.push_back(std::move(errors));
  }
  return study;
}

}  // namespace sketchkv::tune
