#include "client/cpp/examples/tiny_lm_weights.h"

#include <fstream>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/str_cat.h"
#include "client/cpp/files/tensor.h"
#include "kernels/base/status_macros.h"

namespace sketchkv::example {
namespace {

absl::Status ReadNumber(const nlohmann::json& json, const char* field, double min, double max,
                        double* value) {
  const auto found = json.find(field);
  if (found == json.end() || !found->is_number()) {
    return absl::InvalidArgumentError(absl::StrCat(field, ": missing or not a number"));
  }
  *value = found->get<double>();
  if (!(*value >= min && *value <= max)) {
    return absl::InvalidArgumentError(
        absl::StrCat(field, ": ", *value, ", must be from ", min, " to ", max));
  }
  return absl::OkStatus();
}

absl::Status ReadCount(const nlohmann::json& json, const char* field, uint32_t min, uint32_t max,
                       uint32_t* count) {
  double value = 0.0;
  SKETCHKV_RETURN_IF_ERROR(ReadNumber(json, field, min, max, &value));
  *count = static_cast<uint32_t>(value);
  return absl::OkStatus();
}

absl::Status CheckRatios(const TinyLmConfig& config) {
  if (config.query_heads % config.kv_heads != 0) {
    return absl::InvalidArgumentError(absl::StrCat("num_attention_heads: ", config.query_heads,
                                                   " is no multiple of num_key_value_heads ",
                                                   config.kv_heads));
  }
  if (config.head_dim % 8 != 0) {  // also makes RoPE halves whole
    return absl::InvalidArgumentError(
        absl::StrCat("head_dim: ", config.head_dim, " is no multiple of 8"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<TinyLmConfig> ReadConfig(const std::string& path) {
  std::ifstream file(path);
  if (!file) return absl::NotFoundError(absl::StrCat("cannot read ", path));
  const nlohmann::json json = nlohmann::json::parse(file, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) return absl::InvalidArgumentError(absl::StrCat(path, ": no JSON object"));
  TinyLmConfig config;
  double theta = 0.0, eps = 0.0;
  SKETCHKV_RETURN_IF_ERROR(ReadCount(json, "hidden_size", 1, 8192, &config.hidden));
  SKETCHKV_RETURN_IF_ERROR(ReadCount(json, "num_hidden_layers", 1, 256, &config.layers));
  SKETCHKV_RETURN_IF_ERROR(ReadCount(json, "num_attention_heads", 1, 1024, &config.query_heads));
  SKETCHKV_RETURN_IF_ERROR(ReadCount(json, "num_key_value_heads", 1, 256, &config.kv_heads));
  SKETCHKV_RETURN_IF_ERROR(ReadCount(json, "head_dim", 16, 576, &config.head_dim));
  SKETCHKV_RETURN_IF_ERROR(ReadCount(json, "intermediate_size", 1, 65536, &config.feed_forward));
  SKETCHKV_RETURN_IF_ERROR(ReadCount(json, "vocab_size", 256, 256, &config.vocab));
  SKETCHKV_RETURN_IF_ERROR(ReadCount(json, "max_position_embeddings", 1, 65536, &config.context));
  SKETCHKV_RETURN_IF_ERROR(ReadNumber(json, "rope_theta", 1.0, 1e9, &theta));
  SKETCHKV_RETURN_IF_ERROR(ReadNumber(json, "rms_norm_eps", 1e-12, 1.0, &eps));
  SKETCHKV_RETURN_IF_ERROR(CheckRatios(config));
  config.rope_theta = static_cast<float>(theta);
  config.rms_eps = static_cast<float>(eps);
  return config;
}

absl::StatusOr<WeightReader> WeightReader::Open(const std::string& path) {
  SKETCHKV_ASSIGN_OR_RETURN(SafetensorsFile file, SafetensorsFile::Open(path));
  return WeightReader(std::move(file));
}

std::vector<float> WeightReader::Read(const std::string& name, const std::vector<uint64_t>& shape) {
  if (!status_.ok()) return {};
  const NamedTensor* tensor = file_.Find(name);
  if (tensor == nullptr) {
    status_ = absl::InvalidArgumentError(absl::StrCat(name, ": no such tensor"));
    return {};
  }
  if (tensor->shape != shape) {
    status_ = absl::InvalidArgumentError(absl::StrCat(name, ": shape ", ShapeString(tensor->shape),
                                                      ", config.json wants ", ShapeString(shape)));
    return {};
  }
  std::vector<float> numbers(tensor->num_elements());
  status_ = ReadFloats(*tensor, 0, numbers);
  return status_.ok() ? std::move(numbers) : std::vector<float>();
}

std::vector<float> WeightReader::ReadTransposed(const std::string& name, size_t rows,
                                                size_t columns) {
  const std::vector<float> numbers = Read(name, {rows, columns});
  std::vector<float> transposed(numbers.size());
  if (numbers.empty()) return transposed;
  for (size_t r = 0; r < rows; ++r) {
    for (size_t c = 0; c < columns; ++c) transposed[c * rows + r] = numbers[r * columns + c];
  }
  return transposed;
}

}  // namespace sketchkv::example
