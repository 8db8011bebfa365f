#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/cpu/kernel_table.h"
#include "kernels/profile.h"

namespace sketchkv {

// The m x d projection S of a profile: what the kernels need to apply it and its transpose. A
// function of (kind, dim, rows, seed) alone, the same bits on every IEEE machine. Immutable.
class ProjectionMatrix {
 public:
  ProjectionMatrix(Projection kind, uint32_t dim, uint32_t rows, uint64_t seed);
  // A registered basis, [rows][dim], which outlives this object: tables are large and shared.
  ProjectionMatrix(uint32_t dim, std::span<const float> basis);

  [[nodiscard]] uint32_t dim() const { return dim_; }
  [[nodiscard]] uint32_t rows() const { return rows_; }
  // The first `rows` (at most all) rows of S, valid as long as this object.
  [[nodiscard]] ProjectionArgs Args(uint32_t rows) const;
  [[nodiscard]] ProjectionArgs Args() const { return Args(rows_); }
  // [rows, dim] of a dense S; empty for kHadamard.
  [[nodiscard]] std::span<const float> dense() const {
    return basis_.empty() ? std::span<const float>(dense_) : basis_;
  }

 private:
  uint32_t dim_;
  uint32_t rows_;
  uint32_t pow2_part_ = 1;
  uint32_t odd_part_ = 1;
  std::vector<float> signs_;  // [ceil(rows / dim)][dim]
  std::vector<float> dct_;    // [odd_part][odd_part]
  std::vector<float> dense_;  // [rows][dim]
  std::span<const float> basis_;
};

}  // namespace sketchkv
