#include "client/cpp/tune/candidates.h"

#include <algorithm>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "client/cpp/cli/profile_spec.h"
#include "client/cpp/tune/bit_allotment.h"
#include "client/cpp/tune/profile_request.h"
#include "kernels/base/status_macros.h"

namespace sketchkv::tune {
namespace {

// Bits a coordinate of klt's ladder, in halves.
constexpr uint32_t kLadderHalves[] = {2, 3, 4, 5, 6, 8};

struct Parsed {
  std::string profile;
  ProfileRequest request;
  uint32_t layer_begin = 0;
  uint32_t layer_count = 0;
};

// `text` without its layers=.
std::string WithoutLayers(const std::string& text) {
  const std::pair<std::string, std::string> parts = absl::StrSplit(text, absl::MaxSplits(':', 1));
  std::vector<std::string> knobs = absl::StrSplit(parts.second, ',', absl::SkipEmpty());
  std::erase_if(knobs, [](const std::string& k) { return absl::StartsWith(k, "layers="); });
  return knobs.empty() ? parts.first : absl::StrCat(parts.first, ":", absl::StrJoin(knobs, ","));
}

absl::StatusOr<Parsed> Parse(const std::string& text) {
  SKETCHKV_ASSIGN_OR_RETURN(const ProfileSpec spec, cli::ParseProfileSpec(text));
  return Parsed{WithoutLayers(text), RequestOf(spec), spec.layer_begin, spec.layer_count};
}

// Sizes near the ladder's that rows of `dim` coordinates can have, ascending.
std::vector<uint32_t> Ladder(RowKind kind, uint32_t dim) {
  const std::vector<uint32_t> possible = PossibleRowBits(kind, dim);
  std::vector<uint32_t> ladder;
  for (const uint32_t halves : kLadderHalves) {
    const auto at_least = std::lower_bound(possible.begin(), possible.end(), halves * dim / 2);
    const uint32_t bits = at_least == possible.end() ? possible.back() : *at_least;
    if (ladder.empty() || ladder.back() != bits) ladder.push_back(bits);
  }
  return ladder;
}

bool HasBasisKeys(const ProfileRequest& request) { return request.name == "klt"; }

bool HasBasisValues(const ProfileRequest& request) {
  if (request.value_codec) return *request.value_codec == ValueCodec::kBasis;
  return request.name == "klt" && request.value_bits.value_or(0) != 16;
}

// Every size of what is stored in a basis. Step i of the keys is encoded with step i of the values.
void AddAllSizes(const Parsed& parsed, uint32_t head_dim, uint32_t value_dim, CandidateSet* set) {
  std::vector<uint32_t> keys = {0}, values = {0};
  if (HasBasisKeys(parsed.request)) keys = Ladder(RowKind::kKeys, head_dim);
  if (HasBasisValues(parsed.request)) values = Ladder(RowKind::kValues, value_dim);
  const size_t first = set->encodings.size();
  for (size_t i = 0; i < std::max(keys.size(), values.size()); ++i) {
    set->encodings.push_back({parsed.request, keys[std::min(i, keys.size() - 1)],
                              values[std::min(i, values.size() - 1)]});
  }
  for (size_t i = 0; i < keys.size(); ++i) {
    for (size_t j = 0; j < values.size(); ++j) {
      set->candidates.push_back({parsed.profile,
                                 {parsed.request, keys[i], values[j]},
                                 first + i,
                                 first + j,
                                 parsed.layer_begin,
                                 parsed.layer_count});
    }
  }
}

}  // namespace

absl::StatusOr<CandidateSet> DefaultCandidates(uint32_t head_dim, uint32_t value_dim) {
  constexpr uint32_t kBits[] = {2, 3, 4};
  CandidateSet set;
  for (size_t i = 0; i < 3; ++i) {
    for (size_t j = 0; j < 3; ++j) {
      const std::string text =
          absl::StrCat("qjl", kBits[i], "p:center=table,value_bits=", kBits[j]);
      SKETCHKV_ASSIGN_OR_RETURN(const Parsed parsed, Parse(text));
      if (i == j) set.encodings.push_back({parsed.request});
      set.candidates.push_back({parsed.profile, {parsed.request}, i, j});
    }
  }
  SKETCHKV_ASSIGN_OR_RETURN(const Parsed klt, Parse("klt"));
  AddAllSizes(klt, head_dim, value_dim, &set);
  return set;
}

absl::StatusOr<CandidateSet> CandidatesOf(std::span<const std::string> profiles, uint32_t head_dim,
                                          uint32_t value_dim) {
  CandidateSet set;
  for (const std::string& text : profiles) {
    SKETCHKV_ASSIGN_OR_RETURN(const Parsed parsed, Parse(text));
    AddAllSizes(parsed, head_dim, value_dim, &set);
  }
  return set;
}

absl::StatusOr<CandidateSet> FixedCandidate(const std::string& profile, uint32_t key_row_bits,
                                            uint32_t value_row_bits) {
  SKETCHKV_ASSIGN_OR_RETURN(const Parsed parsed, Parse(profile.empty() ? "klt" : profile));
  if (!HasBasisKeys(parsed.request)) {
    return absl::InvalidArgumentError(absl::StrCat("profile is ", parsed.request.name,
                                                   ", must be klt with row bits ", key_row_bits,
                                                   " and ", value_row_bits));
  }
  const Encoding encoding = {parsed.request, key_row_bits,
                             HasBasisValues(parsed.request) ? value_row_bits : 0};
  return CandidateSet{{encoding},
                      {{parsed.profile, encoding, 0, 0, parsed.layer_begin, parsed.layer_count}}};
}

std::vector<std::string> ByLayerRange(std::span<const std::string> layers) {
  std::vector<std::string> texts;
  for (size_t begin = 0; begin < layers.size();) {
    size_t end = begin;
    while (end < layers.size() && layers[end] == layers[begin]) ++end;
    const std::pair<std::string, std::string> parts =
        absl::StrSplit(layers[begin], absl::MaxSplits(':', 1));
    texts.push_back(absl::StrCat(parts.first, ":layers=", begin, "+", end - begin,
                                 parts.second.empty() ? "" : ",", parts.second));
    begin = end;
  }
  return texts;
}

}  // namespace sketchkv::tune
