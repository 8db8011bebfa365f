#include "client/cpp/tune/tune.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "client/cpp/tune/candidates.h"
#include "client/cpp/tune/chooser.h"
#include "client/cpp/tune/head_codec.h"
#include "client/cpp/tune/head_study.h"
#include "client/cpp/tune/profile_request.h"
#include "kernels/base/status_macros.h"

namespace sketchkv::tune {
namespace {

constexpr uint64_t kTokensPerDim = 4;  // calibration below this is warned of

absl::Status Named(const absl::Status& status, size_t layer, size_t head) {
  if (status.ok()) return status;
  return absl::Status(status.code(),
                      absl::StrCat("layer ", layer, " head ", head, ": ", status.message()));
}

absl::Status CheckOptions(const TuneOptions& options) {
  const bool fixed = options.key_row_bits && options.value_row_bits;
  if (options.key_row_bits.has_value() != options.value_row_bits.has_value()) {
    return absl::InvalidArgumentError("key_row_bits and value_row_bits are wanted together");
  }
  const int goals = (options.target_error ? 1 : 0) + (options.target_bits ? 1 : 0) + fixed;
  if (goals != 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("of target_error, target_bits and row bits ", goals, " are given, must be 1"));
  }
  if (!(options.holdout > 0 && options.holdout < 1)) {
    return absl::InvalidArgumentError(
        absl::StrCat("holdout is ", options.holdout, ", must be above 0 and below 1"));
  }
  if (fixed && options.profiles.size() > 1) {
    return absl::InvalidArgumentError(
        absl::StrCat(options.profiles.size(), " profiles are given, with row bits at most 1"));
  }
  return absl::OkStatus();
}

KvLayout LayoutOf(const Samples& samples, uint32_t block_tokens) {
  KvLayout layout;
  layout.num_layers = samples.num_layers();
  layout.num_kv_heads = samples.num_kv_heads();
  layout.head_dim = samples.head_dim();
  layout.value_dim = samples.value_dim();
  layout.block_tokens = block_tokens;
  layout.key_dtype = samples.key_dtype();
  layout.value_dtype = samples.value_dtype();
  return layout;
}

absl::StatusOr<CandidateSet> CandidatesFor(const TuneOptions& options, const KvLayout& layout) {
  if (options.key_row_bits) {
    return FixedCandidate(options.profiles.empty() ? "" : options.profiles[0],
                          *options.key_row_bits, *options.value_row_bits);
  }
  if (!options.profiles.empty()) {
    return CandidatesOf(options.profiles, layout.head_dim, layout.value_dim);
  }
  return DefaultCandidates(layout.head_dim, layout.value_dim);
}

// One run. Steps in the order of the methods; what each adds stays as it is.
class Tuner {
 public:
  Tuner(const Samples& samples, const TuneOptions& options, const Progress& progress,
        const KvLayout& layout, CandidateSet set)
      : samples_(samples),
        options_(options),
        progress_(progress),
        layout_(layout),
        set_(std::move(set)),
        split_(SplitSamples(samples.sequences(), options.holdout)),
        chosen_(layout.num_layers, SIZE_MAX) {}

  absl::StatusOr<TuneResult> Run() {
    SKETCHKV_RETURN_IF_ERROR(Study());
    SKETCHKV_RETURN_IF_ERROR(MakeFigures());
    // Each round measures one more candidate of some layer, so there is a last one.
    for (;;) {
      SKETCHKV_ASSIGN_OR_RETURN(const std::vector<size_t> choice, Choose());
      if (choice == chosen_) break;
      SKETCHKV_RETURN_IF_ERROR(Take(choice));
    }
    return Finish();
  }

 private:
  [[nodiscard]] size_t num_heads() const {
    return size_t{layout_.num_layers} * layout_.num_kv_heads;
  }
  [[nodiscard]] size_t IndexOf(uint32_t layer, uint32_t head) const {
    return size_t{layer} * layout_.num_kv_heads + head;
  }

  absl::Status Study() {
    studies_.resize(num_heads());
    return RunAll(num_heads(), options_.num_threads, progress_, [&](size_t i) {
      const auto layer = static_cast<uint32_t>(i / layout_.num_kv_heads);
      const auto head = static_cast<uint32_t>(i % layout_.num_kv_heads);
      absl::StatusOr<HeadStudy> study =
          StudyHead(samples_, split_, layout_, layer, head, set_.encodings);
      if (study.ok()) studies_[i] = *std::move(study);
      return Named(study.status(), layer, head);
    });
  }

  absl::Status MakeFigures() {
    for (uint32_t layer = 0; layer < layout_.num_layers; ++layer) {
      LayerFigures figures;
      candidate_of_.emplace_back();
      for (size_t c = 0; c < set_.candidates.size(); ++c) {
        if (!set_.candidates[c].Covers(layer)) continue;
        SKETCHKV_ASSIGN_OR_RETURN(CandidateFigures one, FiguresOf(set_.candidates[c], layer));
        figures.candidates.push_back(std::move(one));
        candidate_of_.back().push_back(c);
      }
      if (figures.candidates.empty()) {
        return absl::InvalidArgumentError(
            absl::StrCat("none of ", options_.profiles.size(), " profiles is for layer ", layer));
      }
      for (uint32_t head = 0; head < layout_.num_kv_heads; ++head) {
        figures.outlier_ratio = std::max(figures.outlier_ratio,
                                         OutlierRatio(studies_[IndexOf(layer, head)].spectra.keys));
      }
      layers_.push_back(std::move(figures));
    }
    return absl::OkStatus();
  }

  absl::StatusOr<CandidateFigures> FiguresOf(const Candidate& candidate, uint32_t layer) {
    CandidateFigures figures;
    figures.profile = candidate.profile;
    figures.key_row_bits = candidate.encoding.key_row_bits;
    figures.value_row_bits = candidate.encoding.value_row_bits;
    SKETCHKV_ASSIGN_OR_RETURN(figures.bits, BitsOf(candidate, layer));
    for (uint32_t head = 0; head < layout_.num_kv_heads; ++head) {
      const std::vector<HalfErrors>& errors = studies_[IndexOf(layer, head)].errors;
      AddHead(errors[candidate.keys_of].keys, errors[candidate.values_of].values, head, &figures);
    }
    return figures;
  }

  // Errors of each query of one head.
  void AddHead(const std::vector<double>& keys, const std::vector<double>& values, uint32_t head,
               CandidateFigures* figures) const {
    const auto count = static_cast<double>(keys.size());
    double key_error = 0, value_error = 0, error = 0;
    for (size_t q = 0; q < keys.size(); ++q) {
      key_error += keys[q] / count;
      value_error += values[q] / count;
      error += std::hypot(keys[q], values[q]) / count;
    }
    figures->key_error += key_error / layout_.num_kv_heads;
    figures->value_error += value_error / layout_.num_kv_heads;
    figures->error += error / layout_.num_kv_heads;
    if (error <= figures->worst_head_error) return;
    figures->worst_head = head;
    figures->worst_head_error = error;
  }

  // Of each candidate once, but for what goes by the layer.
  absl::StatusOr<BitsPerNumber> BitsOf(const Candidate& candidate, uint32_t layer) {
    const auto index = static_cast<size_t>(&candidate - set_.candidates.data());
    bits_.resize(set_.candidates.size());
    if (bits_[index] && candidate.encoding.request.name != "qjl-paper") return *bits_[index];
    SKETCHKV_ASSIGN_OR_RETURN(
        HeadTable table, MakeHeadTable(studies_[IndexOf(layer, 0)].spectra, candidate.encoding));
    SKETCHKV_ASSIGN_OR_RETURN(const std::unique_ptr<BlockCodec> codec,
                              OneHeadCodec(layout_, layer, candidate.encoding, std::move(table)));
    bits_[index] = codec->bits_per_number();
    return *bits_[index];
  }

  absl::StatusOr<std::vector<size_t>> Choose() const {
    if (options_.key_row_bits) return std::vector<size_t>(layout_.num_layers, 0);
    std::vector<LayerOptions> layers;
    for (const LayerFigures& figures : layers_) {
      LayerOptions& layer_options = layers.emplace_back();
      for (const CandidateFigures& one : figures.candidates) {
        layer_options.push_back(
            {one.bits.all, options_.target_error ? one.best_known_error() : one.error});
      }
    }
    return options_.target_error ? FewestBits(layers, *options_.target_error)
                                 : LeastError(layers, *options_.target_bits);
  }

  // Makes the tables of a choice and measures it in the layers where it is another than before.
  absl::Status Take(const std::vector<size_t>& choice) {
    tables_.resize(num_heads());
    std::vector<size_t> changed;  // heads
    for (size_t i = 0; i < num_heads(); ++i) {
      const size_t layer = i / layout_.num_kv_heads;
      if (choice[layer] != chosen_[layer]) changed.push_back(i);
    }
    std::vector<double> errors(num_heads());
    chosen_ = choice;
    SKETCHKV_RETURN_IF_ERROR(
        RunAll(changed.size(), options_.num_threads, progress_, [&](size_t i) -> absl::Status {
          const size_t layer = changed[i] / layout_.num_kv_heads;
          const size_t head = changed[i] % layout_.num_kv_heads;
          absl::StatusOr<double> error =
              MeasureChoice(static_cast<uint32_t>(layer), static_cast<uint32_t>(head));
          if (error.ok()) errors[changed[i]] = *error;
          return Named(error.status(), layer, head);
        }));
    for (const size_t i : changed) {
      const size_t layer = i / layout_.num_kv_heads;
      CandidateFigures& figures = layers_[layer].candidates[chosen_[layer]];
      const bool first = i % layout_.num_kv_heads == 0;
      const double before = first ? 0 : *figures.measured_error;
      figures.measured_error = before + errors[i] / layout_.num_kv_heads;
      if (!first && errors[i] <= figures.worst_head_error) continue;
      figures.worst_head = static_cast<uint32_t>(i % layout_.num_kv_heads);
      figures.worst_head_error = errors[i];
    }
    return absl::OkStatus();
  }

  absl::StatusOr<double> MeasureChoice(uint32_t layer, uint32_t head) {
    const Candidate& candidate = set_.candidates[candidate_of_[layer][chosen_[layer]]];
    const size_t index = IndexOf(layer, head);
    SKETCHKV_ASSIGN_OR_RETURN(tables_[index],
                              MakeHeadTable(studies_[index].spectra, candidate.encoding));
    SKETCHKV_ASSIGN_OR_RETURN(const std::unique_ptr<BlockCodec> codec,
                              OneHeadCodec(layout_, layer, candidate.encoding, tables_[index]));
    SKETCHKV_ASSIGN_OR_RETURN(
        const HeldOutHead held_out,
        HeldOutHead::Load(samples_, layer, head, split_.held_out, MaxQueries(split_.held_out)));
    return held_out.Measure(codec->cell(0, 0), layout_.block_tokens);
  }

  absl::StatusOr<TuneResult> Finish() {
    TuneResult result;
    std::vector<std::string> texts;
    for (size_t layer = 0; layer < layers_.size(); ++layer) {
      layers_[layer].chosen = chosen_[layer];
      const CandidateFigures& chosen = layers_[layer].candidates[chosen_[layer]];
      texts.push_back(chosen.profile);
      result.predicted_error += chosen.error / layout_.num_layers;
      result.measured_error += *chosen.measured_error / layout_.num_layers;
    }
    result.layers = std::move(layers_);
    result.tables = {std::move(tables_), layout_.num_layers, layout_.num_kv_heads,
                     layout_.head_dim,   layout_.value_dim,  ByLayerRange(texts)};
    SKETCHKV_RETURN_IF_ERROR(AddSizes(&result));
    result.block_tokens = layout_.block_tokens;
    result.calibration_tokens = NumTokens(split_.calibration);
    result.held_out_tokens = NumTokens(split_.held_out);
    result.queries_per_head = studies_[0].errors[0].keys.size();
    const uint64_t wanted = kTokensPerDim * std::max(layout_.head_dim, layout_.value_dim);
    if (result.calibration_tokens < wanted) {
      result.warnings.push_back(absl::StrCat("tables are made from ", result.calibration_tokens,
                                             " tokens, which is few: ", wanted,
                                             " or more are wanted"));
    }
    return result;
  }

  // From the whole model, as a server will resolve what is written.
  absl::Status AddSizes(TuneResult* result) const {
    SKETCHKV_ASSIGN_OR_RETURN(ModelTables tables,
                              ModelTables::Create(layout_, result->tables.heads));
    const auto shared = std::make_shared<const ModelTables>(std::move(tables));
    SKETCHKV_ASSIGN_OR_RETURN(std::vector<CodecProfile> profiles,
                              ResolveTexts(result->tables.profiles, layout_, shared.get()));
    SKETCHKV_ASSIGN_OR_RETURN(const Isa isa, ChooseIsa("auto"));
    SKETCHKV_ASSIGN_OR_RETURN(const std::unique_ptr<BlockCodec> codec,
                              BlockCodec::Create(layout_, std::move(profiles), isa, shared));
    result->bits = codec->bits_per_number();
    result->slot_bytes = codec->slot_bytes();
    result->raw_bytes =
        num_heads() * layout_.block_tokens * (layout_.key_row_bytes() + layout_.value_row_bytes());
    return absl::OkStatus();
  }

  const Samples& samples_;
  const TuneOptions& options_;
  const Progress& progress_;
  const KvLayout layout_;
  const CandidateSet set_;
  const Split split_;
  std::vector<HeadStudy> studies_;                  // [layers][kv_heads]
  std::vector<std::optional<BitsPerNumber>> bits_;  // of each candidate
  std::vector<LayerFigures> layers_;
  std::vector<std::vector<size_t>> candidate_of_;  // in set_, of each layer's candidates
  std::vector<size_t> chosen_;                     // of each layer's candidates
  std::vector<HeadTable> tables_;                  // [layers][kv_heads], as chosen
};

}  // namespace

absl::StatusOr<TuneResult> Tune(const Samples& samples, const TuneOptions& options,
                                const Progress& progress) {
  SKETCHKV_RETURN_IF_ERROR(CheckOptions(options));
  const KvLayout layout = LayoutOf(samples, options.block_tokens);
  SKETCHKV_RETURN_IF_ERROR(layout.Validate());
  SKETCHKV_ASSIGN_OR_RETURN(CandidateSet set, CandidatesFor(options, layout));
  return Tuner(samples, options, progress, layout, std::move(set)).Run();
}

}  // namespace sketchkv::tune
