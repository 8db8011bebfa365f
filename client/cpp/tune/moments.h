#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace sketchkv::tune {

// Sums over rows of one kind, from which mean and covariance follow. In double, so that a mean far
// from 0 takes nothing from the covariance that float rows still have.
class Moments {
 public:
  explicit Moments(uint32_t dim) : dim_(dim), sum_(dim), products_(size_t{dim} * dim) {}

  // rows: [n, dim].
  void Add(std::span<const float> rows);

  [[nodiscard]] uint32_t dim() const { return dim_; }
  [[nodiscard]] uint64_t num_rows() const { return num_rows_; }
  [[nodiscard]] std::vector<float> Mean() const;  // [dim]; zeros of no rows
  // Mean of (row - center) (row - center)^T: [dim, dim]. center: [dim].
  [[nodiscard]] std::vector<double> About(std::span<const float> center) const;

 private:
  uint32_t dim_;
  uint64_t num_rows_ = 0;
  std::vector<double> sum_;       // [dim]
  std::vector<double> products_;  // [dim, dim] of row^T row, the lower half
};

}  // namespace sketchkv::tune
