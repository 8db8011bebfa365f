#include "tests/testing/random_tables.h"

#include <array>
#include <cmath>
#include <cstdlib>
#include <iostream>
#include <map>
#include <random>
#include <utility>
#include <vector>

namespace sketchkv::testing {
namespace {

using Generator = std::mt19937_64;  // its numbers are specified; distributions are not, so not used

double Uniform(Generator* generator) { return static_cast<double>((*generator)() >> 11) * 0x1p-53; }

double Bell(Generator* generator) {
  return Uniform(generator) + Uniform(generator) + Uniform(generator) - 1.5;
}

std::vector<float> Mean(uint32_t dim, Generator* generator) {
  std::vector<float> mean(dim);
  for (float& x : mean) x = static_cast<float>(Bell(generator));
  return mean;
}

Basis RandomBasis(uint32_t dim, Generator* generator) {
  const uint32_t rows = dim - dim / 8;
  std::vector<std::vector<double>> basis;
  for (uint32_t i = 0; i < rows; ++i) {
    std::vector<double> row(dim);
    for (double& x : row) x = Bell(generator);
    for (int pass = 0; pass < 2; ++pass) {
      for (const auto& before : basis) {
        double along = 0;
        for (uint32_t c = 0; c < dim; ++c) along += row[c] * before[c];
        for (uint32_t c = 0; c < dim; ++c) row[c] -= along * before[c];
      }
    }
    double norm = 0;
    for (double x : row) norm += x * x;
    for (double& x : row) x /= std::sqrt(norm);
    basis.push_back(row);
  }
  Basis out;
  for (const auto& row : basis) out.rows.insert(out.rows.end(), row.begin(), row.end());
  for (uint32_t row = 0; row < rows; row += 32) {
    out.group_bits.push_back(static_cast<uint8_t>(row < 96 ? 4 - row / 32 : 1));
    out.group_rms.push_back(1.0f / static_cast<float>(1 + row / 32));
  }
  return out;
}

}  // namespace

std::shared_ptr<const ModelTables> RandomTables(const KvLayout& layout, uint32_t num_outliers,
                                                uint64_t seed) {
  // Wide bases take long to make, and a test asks for the same ones for each instruction set.
  using Key = std::array<uint64_t, 6>;
  static auto* const made = new std::map<Key, std::shared_ptr<const ModelTables>>();
  auto& tables = (*made)[Key{layout.num_layers, layout.num_kv_heads, layout.head_dim,
                             layout.value_dim, num_outliers, seed}];
  if (tables != nullptr) return tables;
  Generator generator(seed);
  std::vector<HeadTable> heads(size_t{layout.num_layers} * layout.num_kv_heads);
  for (HeadTable& head : heads) {
    head.key_mean = Mean(layout.head_dim, &generator);
    for (uint32_t o = 0; o < num_outliers && o < layout.head_dim; ++o) {
      head.outlier_channels.push_back(o * (layout.head_dim / num_outliers) + 1 % layout.head_dim);
    }
    head.key_basis = RandomBasis(layout.head_dim, &generator);
    head.value_mean = Mean(layout.value_dim, &generator);
    head.value_basis = RandomBasis(layout.value_dim, &generator);
  }
  auto created = ModelTables::Create(layout, std::move(heads));
  if (!created.ok()) {
    std::cerr << created.status() << std::endl;
    std::abort();
  }
  tables = std::make_shared<const ModelTables>(*std::move(created));
  return tables;
}

}  // namespace sketchkv::testing
