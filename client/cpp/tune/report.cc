#include "client/cpp/tune/report.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"

namespace sketchkv::tune {
namespace {

using nlohmann::ordered_json;

constexpr int kNameWidth = 36;

std::string NameOf(const CandidateFigures& candidate) {
  if (candidate.key_row_bits == 0 && candidate.value_row_bits == 0) return candidate.profile;
  const auto bits = [](uint32_t row_bits) {
    return row_bits == 0 ? std::string("-") : absl::StrCat(row_bits);
  };
  return absl::StrCat(candidate.profile, " ", bits(candidate.key_row_bits), " + ",
                      bits(candidate.value_row_bits), " row bits");
}

// No other candidate has less error at no more bits.
bool IsBest(const std::vector<CandidateFigures>& all, const CandidateFigures& candidate) {
  return std::none_of(all.begin(), all.end(), [&](const CandidateFigures& other) {
    return other.error < candidate.error && other.bits.all <= candidate.bits.all;
  });
}

// The last of the best that is cheaper than `chosen` and the first that has less error; null if
// none.
struct Neighbours {
  const CandidateFigures* cheaper = nullptr;
  const CandidateFigures* better = nullptr;
};

Neighbours NeighboursOf(const LayerFigures& layer) {
  const CandidateFigures& chosen = layer.candidates[layer.chosen];
  Neighbours found;
  for (const CandidateFigures& one : layer.candidates) {
    if (!IsBest(layer.candidates, one)) continue;
    if (one.bits.all < chosen.bits.all &&
        (found.cheaper == nullptr || one.bits.all > found.cheaper->bits.all)) {
      found.cheaper = &one;
    }
    if (one.bits.all > chosen.bits.all && one.error < chosen.error &&
        (found.better == nullptr || one.bits.all < found.better->bits.all)) {
      found.better = &one;
    }
  }
  return found;
}

void AppendRow(absl::string_view layer, absl::string_view what, const CandidateFigures& candidate,
               std::string* text) {
  std::string measured = candidate.measured_error
                             ? absl::StrFormat("%8.5f", *candidate.measured_error)
                             : std::string(8, ' ');
  absl::StrAppendFormat(text, "%5s  %-8s%-*s%6.3f%7.3f%7.3f  %8.5f %8.5f %8.5f %s  %3d: %7.5f\n",
                        layer, what, kNameWidth, NameOf(candidate), candidate.bits.all,
                        candidate.bits.keys, candidate.bits.values, candidate.key_error,
                        candidate.value_error, candidate.error, measured, candidate.worst_head,
                        candidate.worst_head_error);
}

ordered_json JsonOf(const BitsPerNumber& bits) {
  return {{"keys", bits.keys}, {"values", bits.values}, {"all", bits.all}};
}

ordered_json JsonOf(const CandidateFigures& candidate) {
  ordered_json json = {{"profile", candidate.profile}};
  if (candidate.key_row_bits > 0) json["key_row_bits"] = candidate.key_row_bits;
  if (candidate.value_row_bits > 0) json["value_row_bits"] = candidate.value_row_bits;
  json["bits_per_number"] = JsonOf(candidate.bits);
  json["key_error"] = candidate.key_error;
  json["value_error"] = candidate.value_error;
  json["error"] = candidate.error;
  if (candidate.measured_error) json["measured_error"] = *candidate.measured_error;
  json["worst_head"] = candidate.worst_head;
  json["worst_head_error"] = candidate.worst_head_error;
  return json;
}

double Ratio(const TuneResult& result) {
  return static_cast<double>(result.raw_bytes) / static_cast<double>(result.slot_bytes);
}

}  // namespace

std::string ReportText(const TuneResult& result) {
  std::string text = absl::StrFormat(
      "tables from %d tokens, errors over %d held-out tokens with %d queries a head; blocks of %d "
      "tokens\n\n%5s  %-8s%-*s%6s%7s%7s  %8s %8s %8s %8s  %s\n",
      result.calibration_tokens, result.held_out_tokens, result.queries_per_head,
      result.block_tokens, "layer", "", kNameWidth, "candidate", "bits", "keys", "values", "keys",
      "values", "both", "measured", "worst head");
  for (size_t i = 0; i < result.layers.size(); ++i) {
    const LayerFigures& layer = result.layers[i];
    const Neighbours neighbours = NeighboursOf(layer);
    AppendRow(absl::StrCat(i), "chosen", layer.candidates[layer.chosen], &text);
    if (neighbours.cheaper != nullptr) AppendRow("", "cheaper", *neighbours.cheaper, &text);
    if (neighbours.better != nullptr) AppendRow("", "better", *neighbours.better, &text);
  }
  absl::StrAppendFormat(
      &text,
      "\nbits are stored bits a number of whole blocks; errors are mean |o' - o| / |o| of "
      "attention's output,\nof keys alone, of values alone, of both (root of the sum of their "
      "squares), and measured with both\n\nprofiles %s\n"
      "in all %.3f bits a number (keys %.3f, values %.3f), 1/%.2f of raw; error %.5f predicted, "
      "%.5f measured\n",
      absl::StrJoin(result.tables.profiles, " "), result.bits.all, result.bits.keys,
      result.bits.values, Ratio(result), result.predicted_error, result.measured_error);
  return text;
}

std::string ReportJson(const TuneResult& result) {
  ordered_json layers = ordered_json::array();
  for (size_t i = 0; i < result.layers.size(); ++i) {
    const LayerFigures& layer = result.layers[i];
    ordered_json candidates = ordered_json::array();
    for (const CandidateFigures& one : layer.candidates) candidates.push_back(JsonOf(one));
    layers.push_back({{"layer", i},
                      {"chosen", layer.chosen},
                      {"outlier_ratio", layer.outlier_ratio},
                      {"candidates", candidates}});
  }
  const ordered_json json = {{"block_tokens", result.block_tokens},
                             {"calibration_tokens", result.calibration_tokens},
                             {"held_out_tokens", result.held_out_tokens},
                             {"queries_per_head", result.queries_per_head},
                             {"profiles", result.tables.profiles},
                             {"bits_per_number", JsonOf(result.bits)},
                             {"slot_bytes", result.slot_bytes},
                             {"raw_bytes", result.raw_bytes},
                             {"predicted_error", result.predicted_error},
                             {"measured_error", result.measured_error},
                             {"warnings", result.warnings},
                             {"layers", layers}};
  return json.dump(2, ' ', false, ordered_json::error_handler_t::replace) + "\n";
}

}  // namespace sketchkv::tune
