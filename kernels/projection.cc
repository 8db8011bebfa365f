#include "kernels/projection.h"

#include <algorithm>
#include <cmath>

#include "kernels/exact_math.h"

namespace sketchkv {
namespace {

// Bit c % 64 of word j * ceil(d / 64) + c / 64 of the stream is set where block j's diagonal is -1.
std::vector<float> SignDiagonals(uint32_t num_blocks, uint32_t dim, uint64_t seed) {
  const uint32_t words = (dim + 63) / 64;
  std::vector<float> signs(static_cast<size_t>(num_blocks) * dim);
  for (uint32_t j = 0; j < num_blocks; ++j) {
    for (uint32_t c = 0; c < dim; ++c) {
      const uint64_t word = SplitMix64(seed, uint64_t{j} * words + c / 64);
      signs[size_t{j} * dim + c] = (word >> (c % 64) & 1) != 0 ? -1.0f : 1.0f;
    }
  }
  return signs;
}

// The orthonormal DCT-II of order b times sqrt(b): row 0 is ones, row u sqrt(2) cos(pi (2v+1) u /
// 2b).
std::vector<float> ScaledDct(uint32_t b) {
  std::vector<float> dct(size_t{b} * b, 1.0f);
  for (uint64_t u = 1; u < b; ++u) {
    for (uint64_t v = 0; v < b; ++v) {
      dct[u * b + v] = static_cast<float>(std::sqrt(2.0) * ExactCosPi((2 * v + 1) * u, 2 * b));
    }
  }
  return dct;
}

// Standard normal numbers by Marsaglia's polar method over the splitmix64 stream. sqrt is exact by
// IEEE 754, the logarithm is ours.
class NormalStream {
 public:
  explicit NormalStream(uint64_t seed) : seed_(seed) {}

  double Next() {
    if (has_spare_) {
      has_spare_ = false;
      return spare_;
    }
    double u = 0, v = 0, s = 0;
    do {
      u = Uniform();
      v = Uniform();
      s = u * u + v * v;
    } while (s >= 1.0 || s == 0.0);
    const double scale = std::sqrt(-2.0 * ExactLog(s) / s);
    spare_ = v * scale;
    has_spare_ = true;
    return u * scale;
  }

 private:
  // In (-1, 1): 53 random bits, centred.
  double Uniform() {
    const uint64_t bits = SplitMix64(seed_, index_++) >> 11;
    return (static_cast<double>(bits) + 0.5) * 0x1p-52 - 1.0;
  }

  uint64_t seed_;
  uint64_t index_ = 0;
  bool has_spare_ = false;
  double spare_ = 0.0;
};

// Eight sums side by side, then by halves: an order of its own that compilers may vectorise.
double Dot(const double* a, const double* b, uint32_t n) {
  double sum[8] = {};
  for (uint32_t i = 0; i < n; i += 8) {
    for (uint32_t j = 0; j < 8; ++j) sum[j] += a[i + j] * b[i + j];
  }
  return ((sum[0] + sum[4]) + (sum[2] + sum[6])) + ((sum[1] + sum[5]) + (sum[3] + sum[7]));
}

// Gram-Schmidt, every row twice against those before it: orthogonal to double precision. The same
// rows as QR up to signs, and Haar-distributed because the input is Gaussian.
void Orthonormalise(std::vector<double>* block, uint32_t dim) {
  for (uint32_t i = 0; i < dim; ++i) {
    double* row = block->data() + size_t{i} * dim;
    for (int pass = 0; pass < 2; ++pass) {
      for (uint32_t j = 0; j < i; ++j) {
        const double* before = block->data() + size_t{j} * dim;
        const double along = Dot(row, before, dim);
        for (uint32_t c = 0; c < dim; ++c) row[c] -= along * before[c];
      }
    }
    const double norm = std::sqrt(Dot(row, row, dim));
    for (uint32_t c = 0; c < dim; ++c) row[c] /= norm;
  }
}

std::vector<float> DenseRows(Projection kind, uint32_t dim, uint32_t rows, uint64_t seed) {
  NormalStream normal(seed);
  std::vector<float> dense;
  dense.reserve(size_t{rows} * dim);
  std::vector<double> block(size_t{dim} * dim);
  for (uint32_t row = 0; row < rows; row += dim) {
    for (double& x : block) x = normal.Next();
    double scale = 1.0;
    if (kind == Projection::kOrthogonal) {
      Orthonormalise(&block, dim);
      scale = std::sqrt(static_cast<double>(dim));
    }
    const size_t count = size_t{std::min(dim, rows - row)} * dim;
    for (size_t i = 0; i < count; ++i) dense.push_back(static_cast<float>(block[i] * scale));
  }
  return dense;
}

}  // namespace

ProjectionMatrix::ProjectionMatrix(Projection kind, uint32_t dim, uint32_t rows, uint64_t seed)
    : dim_(dim), rows_(rows) {
  if (kind != Projection::kHadamard) {
    dense_ = DenseRows(kind, dim, rows, seed);
    return;
  }
  while (dim % (2 * pow2_part_) == 0) pow2_part_ *= 2;
  odd_part_ = dim / pow2_part_;
  signs_ = SignDiagonals((rows + dim - 1) / dim, dim, seed);
  dct_ = ScaledDct(odd_part_);
}

ProjectionMatrix::ProjectionMatrix(uint32_t dim, std::span<const float> basis)
    : dim_(dim), rows_(static_cast<uint32_t>(basis.size() / dim)), basis_(basis) {}

ProjectionArgs ProjectionMatrix::Args(uint32_t rows) const {
  return {dim_,
          rows,
          pow2_part_,
          odd_part_,
          signs_.empty() ? nullptr : signs_.data(),
          dct_.data(),
          dense().empty() ? nullptr : dense().data()};
}

}  // namespace sketchkv
