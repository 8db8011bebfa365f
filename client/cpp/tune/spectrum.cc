#include "client/cpp/tune/spectrum.h"

#include <Eigen/Core>
#include <Eigen/Eigenvalues>
#include <algorithm>
#include <cmath>
#include <numeric>

namespace sketchkv::tune {
namespace {

using Matrix = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

// The least variance along an axis, of the mean variance. A sample of few rows leaves axes it never
// went along; keys will.
constexpr double kFloor = 1e-6;
constexpr double kFloorOfFewRows = 1e-2;
// A sample without any variance still has a basis.
constexpr double kLeastVariance = 1e-30;

Matrix AsMatrix(const std::vector<double>& numbers, Eigen::Index dim) {
  return Eigen::Map<const Matrix>(numbers.data(), dim, dim);
}

double FloorOf(const Matrix& covariance, double num_rows) {
  const auto dim = static_cast<double>(covariance.rows());
  const double few = std::pow(std::min(1.0, dim / std::max(num_rows, 1.0)), 3);
  return covariance.trace() / dim * (kFloor + kFloorOfFewRows * few) + kLeastVariance;
}

// `queries` may be null.
Spectrum MakeSpectrum(const Moments& rows, const Moments* queries) {
  const uint32_t dim = rows.dim();
  Spectrum out;
  out.dim = dim;
  out.mean = rows.Mean();
  const Matrix covariance = AsMatrix(rows.About(out.mean), dim);
  const double floor = FloorOf(covariance, static_cast<double>(rows.num_rows()));
  const Eigen::SelfAdjointEigenSolver<Matrix> solver(covariance);
  const Matrix axes = solver.eigenvectors().transpose();
  Eigen::VectorXd power = Eigen::VectorXd::Ones(dim);
  if (queries != nullptr) {
    const Matrix moment = AsMatrix(queries->About(std::vector<float>(dim, 0.0f)), dim);
    power = (axes * moment).cwiseProduct(axes).rowwise().sum().cwiseMax(0.0).cwiseSqrt();
  }
  const Eigen::VectorXd variances = solver.eigenvalues().cwiseMax(0.0).array() + floor;
  const Eigen::VectorXd importance = variances.cwiseProduct(power);

  std::vector<Eigen::Index> order(dim);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](Eigen::Index a, Eigen::Index b) { return importance[a] > importance[b]; });
  for (const Eigen::Index i : order) {
    out.axes.insert(out.axes.end(), axes.row(i).begin(), axes.row(i).end());
    out.variances.push_back(variances[i]);
    out.importance.push_back(importance[i]);
  }
  return out;
}

std::vector<double> ChannelEnergies(const Spectrum& spectrum) {
  std::vector<double> energies(spectrum.dim, 0.0);
  for (size_t i = 0; i < spectrum.dim; ++i) {
    for (size_t c = 0; c < spectrum.dim; ++c) {
      const double x = spectrum.axes[i * spectrum.dim + c];
      energies[c] += spectrum.variances[i] * x * x;
    }
  }
  return energies;
}

}  // namespace

Spectrum ValueSpectrum(const Moments& values) { return MakeSpectrum(values, nullptr); }

Spectrum KeySpectrum(const Moments& keys, const Moments& queries) {
  return MakeSpectrum(keys, &queries);
}

std::vector<uint32_t> OutlierChannels(const Spectrum& spectrum, uint32_t count, bool about_mean) {
  std::vector<double> energies = ChannelEnergies(spectrum);
  for (size_t c = 0; !about_mean && c < energies.size(); ++c) {
    energies[c] += double{spectrum.mean[c]} * spectrum.mean[c];
  }
  std::vector<uint32_t> channels(spectrum.dim);
  std::iota(channels.begin(), channels.end(), 0);
  std::stable_sort(channels.begin(), channels.end(),
                   [&](uint32_t a, uint32_t b) { return energies[a] > energies[b]; });
  channels.resize(std::min(count, spectrum.dim));
  std::sort(channels.begin(), channels.end());
  return channels;
}

double OutlierRatio(const Spectrum& spectrum) {
  std::vector<double> energies = ChannelEnergies(spectrum);
  const auto middle = energies.begin() + spectrum.dim / 2;
  std::nth_element(energies.begin(), middle, energies.end());
  const double median = *middle;
  return *std::max_element(energies.begin(), energies.end()) / median;
}

}  // namespace sketchkv::tune
