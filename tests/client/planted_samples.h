#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "client/cpp/files/safetensors.h"

namespace sketchkv {

// Keys and values of known covariance: the first `strong` coordinates of a random orthogonal frame
// (drawn for each layer and head) have variance 1, the others `weak`; about a mean of 1 along every
// channel. Queries are white.
struct PlantedSamples {
  uint32_t num_layers = 1;
  uint32_t num_kv_heads = 1;
  uint32_t queries_per_kv_head = 2;
  uint32_t dim = 128;
  uint32_t strong = 32;  // in layer l: min(dim, strong << l)
  double weak = 1e-4;
  uint64_t num_tokens = 2048;
  std::vector<int64_t> sequence_starts;  // empty: no such tensor

  // What was drawn; filled by Write.
  std::vector<std::vector<double>> frames;  // [layers][kv_heads] of [dim][dim], orthonormal rows

  [[nodiscard]] uint32_t StrongIn(uint32_t layer) const { return std::min(dim, strong << layer); }

  // Writes the samples file. The same numbers on every run.
  [[nodiscard]] absl::Status Write(const std::string& path) {
    std::mt19937_64 random(20260917);
    std::vector<std::vector<float>> arrays;
    std::vector<NamedTensor> tensors;
    arrays.reserve(3 * num_layers);  // tensors view them
    frames.clear();
    const auto add = [&](uint32_t layer, const char* kind, uint32_t heads,
                         std::vector<float> numbers) {
      arrays.push_back(std::move(numbers));
      tensors.push_back({absl::StrCat("layers.", layer, ".", kind),
                         "F32",
                         {num_tokens, heads, dim},
                         std::as_bytes(std::span(arrays.back()))});
    };
    for (uint32_t layer = 0; layer < num_layers; ++layer) {
      for (uint32_t head = 0; head < num_kv_heads; ++head) frames.push_back(RandomFrame(&random));
      add(layer, "keys", num_kv_heads, Rows(layer, &random));
      add(layer, "values", num_kv_heads, Rows(layer, &random));
      const uint32_t heads = num_kv_heads * queries_per_kv_head;
      std::vector<float> queries(num_tokens * heads * dim);
      std::normal_distribution<float> normal;
      for (float& x : queries) x = normal(random);
      add(layer, "queries", heads, std::move(queries));
    }
    if (!sequence_starts.empty()) {
      tensors.push_back({"sequence_starts",
                         "I64",
                         {sequence_starts.size()},
                         std::as_bytes(std::span(sequence_starts))});
    }
    return WriteSafetensors(path, tensors);
  }

 private:
  std::vector<double> RandomFrame(std::mt19937_64* random) const {
    std::normal_distribution<double> normal;
    std::vector<double> rows(size_t{dim} * dim);
    for (double& x : rows) x = normal(*random);
    for (size_t i = 0; i < dim; ++i) {  // Gram-Schmidt
      for (size_t j = 0; j <= i; ++j) {
        double dot = 0;
        for (size_t c = 0; c < dim; ++c) dot += rows[i * dim + c] * rows[j * dim + c];
        for (size_t c = 0; c < dim; ++c) {
          rows[i * dim + c] = j < i ? rows[i * dim + c] - dot * rows[j * dim + c]
                                    : rows[i * dim + c] / std::sqrt(dot);
        }
      }
    }
    return rows;
  }

  // [tokens, kv_heads, dim] of one layer.
  std::vector<float> Rows(uint32_t layer, std::mt19937_64* random) const {
    std::normal_distribution<double> normal;
    std::vector<float> rows(num_tokens * num_kv_heads * dim);
    std::vector<double> coordinates(dim), row(dim);
    for (size_t r = 0; r < num_tokens * num_kv_heads; ++r) {
      const std::vector<double>& frame = frames[size_t{layer} * num_kv_heads + r % num_kv_heads];
      std::fill(row.begin(), row.end(), 1.0);
      for (size_t i = 0; i < dim; ++i) {
        const double x = normal(*random) * (i < StrongIn(layer) ? 1.0 : std::sqrt(weak));
        for (size_t c = 0; c < dim; ++c) row[c] += x * frame[i * dim + c];
      }
      for (size_t c = 0; c < dim; ++c) rows[r * dim + c] = static_cast<float>(row[c]);
    }
    return rows;
  }
};

}  // namespace sketchkv
