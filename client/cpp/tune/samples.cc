#include "client/cpp/tune/samples.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "client/cpp/files/float_formats.h"
#include "kernels/base/status_macros.h"

namespace sketchkv::tune {
namespace {

constexpr uint32_t kMaxLayers = 256;  // as KvLayout's

absl::Status Bad(absl::string_view tensor, absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat("tensor \"", tensor, "\" ", what));
}

void RoundToCache(DType dtype, std::vector<float>* rows) {
  if (dtype == DType::kFp16) return;  // came from F16
  for (float& x : *rows) x = Bf16ToFloat(FloatToBf16(x));
}

// [tokens, heads, dim] of F32, F16 or BF16, the first of its kind or like `first`.
absl::Status CheckRows(const NamedTensor& tensor, const NamedTensor& first) {
  if (tensor.dtype != "F32" && tensor.dtype != "F16" && tensor.dtype != "BF16") {
    return Bad(tensor.name, absl::StrCat("has dtype ", tensor.dtype, ", want F32, F16 or BF16"));
  }
  if (tensor.shape.size() != 3 || tensor.num_elements() == 0) {
    return Bad(tensor.name, absl::StrCat("has shape ", ShapeString(tensor.shape),
                                         ", want [tokens, heads, dim], none 0"));
  }
  for (const uint64_t extent : {tensor.shape[1], tensor.shape[2]}) {
    if (extent <= UINT32_MAX) continue;
    return Bad(tensor.name, absl::StrCat("has ", extent, " heads or channels, at most 2^32 - 1"));
  }
  if (tensor.shape == first.shape && tensor.dtype == first.dtype) return absl::OkStatus();
  return Bad(tensor.name,
             absl::StrCat("is ", tensor.dtype, " ", ShapeString(tensor.shape), ", \"", first.name,
                          "\" is ", first.dtype, " ", ShapeString(first.shape)));
}

// Rows [tokens, count * dim] that begin at head `head * count`.
absl::StatusOr<std::vector<float>> ReadRows(const NamedTensor& tensor, uint32_t head,
                                            uint32_t count, TokenRange tokens) {
  const uint64_t row = tensor.shape[1] * tensor.shape[2];
  const uint64_t wanted = count * tensor.shape[2];
  std::vector<float> out(tokens.size() * wanted);
  for (uint64_t t = 0; t < tokens.size(); ++t) {
    const std::span<float> numbers = std::span(out).subspan(t * wanted, wanted);
    SKETCHKV_RETURN_IF_ERROR(ReadFloats(tensor, (tokens.begin + t) * row + head * wanted, numbers));
    for (const float x : numbers) {
      if (std::isfinite(x)) continue;
      return Bad(tensor.name, absl::StrCat("has ", x, " at token ", tokens.begin + t, ", head ",
                                           head, "; all must be finite"));
    }
  }
  return out;
}

DType CacheDtype(const NamedTensor& tensor) {
  return tensor.dtype == "F16" ? DType::kFp16 : DType::kBf16;
}

}  // namespace

absl::StatusOr<Samples> Samples::Open(const std::string& path) {
  SKETCHKV_ASSIGN_OR_RETURN(SafetensorsFile file, SafetensorsFile::Open(path));
  Samples samples(std::move(file));
  const absl::Status status = samples.Index();
  if (status.ok()) return samples;
  return absl::InvalidArgumentError(absl::StrCat(path, ": ", status.message()));
}

absl::Status Samples::Index() {
  while (file_.Find(absl::StrCat("layers.", num_layers_, ".keys")) != nullptr) {
    if (num_layers_ == kMaxLayers) {
      return absl::InvalidArgumentError(
          absl::StrCat("there are over ", kMaxLayers, " layers, must be at most ", kMaxLayers));
    }
    SKETCHKV_RETURN_IF_ERROR(IndexLayer(num_layers_++));
  }
  if (num_layers_ == 0) {
    return absl::InvalidArgumentError("there is no tensor \"layers.0.keys\": 0 layers, must be 1+");
  }
  // A layer after one that was left out would go unseen.
  for (const NamedTensor& tensor : file_.tensors()) {
    const auto is = [&tensor](const NamedTensor* wanted) { return wanted == &tensor; };
    const bool known = std::any_of(layers_.begin(), layers_.end(), [&](const Layer& layer) {
      return is(layer.keys) || is(layer.queries) || is(layer.values);
    });
    if (!known && absl::StartsWith(tensor.name, "layers.")) {
      return Bad(tensor.name, absl::StrCat("is not wanted: layers 0 to ", num_layers_ - 1,
                                           " have keys, queries and values"));
    }
  }
  const NamedTensor& keys = *layers_[0].keys;
  const NamedTensor& queries = *layers_[0].queries;
  const NamedTensor& values = *layers_[0].values;
  num_tokens_ = keys.shape[0];
  num_kv_heads_ = static_cast<uint32_t>(keys.shape[1]);
  head_dim_ = static_cast<uint32_t>(keys.shape[2]);
  value_dim_ = static_cast<uint32_t>(values.shape[2]);
  key_dtype_ = CacheDtype(keys);
  value_dtype_ = CacheDtype(values);
  if (values.shape[0] != num_tokens_ || values.shape[1] != num_kv_heads_) {
    return Bad(values.name, absl::StrCat("has shape ", ShapeString(values.shape), ", the keys' is ",
                                         ShapeString(keys.shape)));
  }
  if (queries.shape[0] != num_tokens_ || queries.shape[1] % num_kv_heads_ != 0 ||
      queries.shape[2] != head_dim_) {
    return Bad(queries.name,
               absl::StrCat("has shape ", ShapeString(queries.shape), ", the keys' is ",
                            ShapeString(keys.shape), ", so it must be [", num_tokens_,
                            ", a multiple of ", num_kv_heads_, ", ", head_dim_, "]"));
  }
  queries_per_kv_head_ = static_cast<uint32_t>(queries.shape[1] / num_kv_heads_);
  return IndexSequences();
}

absl::Status Samples::IndexLayer(uint32_t layer) {
  Layer found;
  const std::pair<const char*, const NamedTensor**> kinds[] = {
      {"keys", &found.keys}, {"queries", &found.queries}, {"values", &found.values}};
  for (const auto& [kind, tensor] : kinds) {
    const std::string name = absl::StrCat("layers.", layer, ".", kind);
    *tensor = file_.Find(name);
    if (*tensor == nullptr) return Bad(name, "is not there");
  }
  layers_.push_back(found);
  const Layer& first = layers_[0];
  SKETCHKV_RETURN_IF_ERROR(CheckRows(*found.keys, *first.keys));
  SKETCHKV_RETURN_IF_ERROR(CheckRows(*found.queries, *first.queries));
  return CheckRows(*found.values, *first.values);
}

absl::Status Samples::IndexSequences() {
  const NamedTensor* tensor = file_.Find("sequence_starts");
  std::vector<int64_t> starts = {0};
  if (tensor != nullptr) {
    SKETCHKV_ASSIGN_OR_RETURN(starts, ReadIntegers(*tensor));
    if (starts.empty() || starts[0] != 0) {
      return Bad(tensor->name,
                 absl::StrCat("begins with ", starts.empty() ? -1 : starts[0], ", must be 0"));
    }
  }
  for (size_t i = 0; i < starts.size(); ++i) {
    const auto begin = static_cast<uint64_t>(starts[i]);
    const uint64_t end = i + 1 < starts.size() ? static_cast<uint64_t>(starts[i + 1]) : num_tokens_;
    if (begin >= end || end > num_tokens_) {  // a negative number is a huge one here
      return Bad(tensor->name,
                 absl::StrCat("has ", starts[i], " before ", static_cast<int64_t>(end),
                              ", must ascend and stay ", "below ", num_tokens_, " tokens"));
    }
    sequences_.push_back({begin, end});
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<float>> Samples::Keys(uint32_t layer, uint32_t head,
                                                 TokenRange tokens) const {
  SKETCHKV_ASSIGN_OR_RETURN(std::vector<float> rows,
                            ReadRows(*layers_[layer].keys, head, 1, tokens));
  RoundToCache(key_dtype_, &rows);
  return rows;
}

absl::StatusOr<std::vector<float>> Samples::Values(uint32_t layer, uint32_t head,
                                                   TokenRange tokens) const {
  SKETCHKV_ASSIGN_OR_RETURN(std::vector<float> rows,
                            ReadRows(*layers_[layer].values, head, 1, tokens));
  RoundToCache(value_dtype_, &rows);
  return rows;
}

absl::StatusOr<std::vector<float>> Samples::Queries(uint32_t layer, uint32_t head,
                                                    TokenRange tokens) const {
  return ReadRows(*layers_[layer].queries, head, queries_per_kv_head_, tokens);
}

uint64_t NumTokens(std::span<const TokenRange> ranges) {
  uint64_t sum = 0;
  for (const TokenRange& range : ranges) sum += range.size();
  return sum;
}

Split SplitSamples(std::span<const TokenRange> sequences, double fraction) {
  const uint64_t num_tokens = NumTokens(sequences);
  const double wanted = fraction * static_cast<double>(num_tokens);
  auto cut = static_cast<uint64_t>(std::llround(static_cast<double>(num_tokens) - wanted));
  cut = std::clamp<uint64_t>(cut, std::min<uint64_t>(1, num_tokens), num_tokens);
  // A sequence that begins near there, so that half to twice as much is held out.
  uint64_t best = cut, distance = UINT64_MAX;
  for (const TokenRange& sequence : sequences) {
    const auto held = static_cast<double>(num_tokens - sequence.begin);
    const uint64_t away = std::max(sequence.begin, cut) - std::min(sequence.begin, cut);
    if (sequence.begin == 0 || held < wanted / 2 || held > wanted * 2 || away >= distance) continue;
    best = sequence.begin;
    distance = away;
  }
  Split split;
  for (const TokenRange& sequence : sequences) {
    const uint64_t middle = std::clamp(best, sequence.begin, sequence.end);
    if (middle > sequence.begin) split.calibration.push_back({sequence.begin, middle});
    if (middle < sequence.end) split.held_out.push_back({middle, sequence.end});
  }
  return split;
}

std::vector<std::byte> ToElements(std::span<const float> numbers, DType dtype) {
  std::vector<std::byte> out(numbers.size() * DTypeBytes(dtype));
  if (dtype == DType::kFp32) {
    std::memcpy(out.data(), numbers.data(), out.size());
    return out;
  }
  for (size_t i = 0; i < numbers.size(); ++i) {
    const uint16_t bits = dtype == DType::kFp16 ? FloatToFp16(numbers[i]) : FloatToBf16(numbers[i]);
    std::memcpy(out.data() + i * sizeof(bits), &bits, sizeof(bits));
  }
  return out;
}

}  // namespace sketchkv::tune
