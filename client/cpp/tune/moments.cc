#include "client/cpp/tune/moments.h"

#include <Eigen/Core>
#include <algorithm>

namespace sketchkv::tune {
namespace {

template <typename Scalar>
using Matrix = Eigen::Matrix<Scalar, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

constexpr Eigen::Index kChunkRows = 1024;  // as double they stay in the cache

}  // namespace

void Moments::Add(std::span<const float> rows) {
  const auto count = static_cast<Eigen::Index>(rows.size() / dim_);
  const Eigen::Map<const Matrix<float>> all(rows.data(), count, dim_);
  Eigen::Map<Eigen::RowVectorXd> sum(sum_.data(), dim_);
  Eigen::Map<Matrix<double>> products(products_.data(), dim_, dim_);
  for (Eigen::Index begin = 0; begin < count; begin += kChunkRows) {
    const Matrix<double> chunk =
        all.middleRows(begin, std::min(kChunkRows, count - begin)).cast<double>();
    sum += chunk.colwise().sum();
    products.selfadjointView<Eigen::Lower>().rankUpdate(chunk.transpose());
  }
  num_rows_ += static_cast<uint64_t>(count);
}

std::vector<float> Moments::Mean() const {
  std::vector<float> mean(dim_);
  const double count = static_cast<double>(std::max<uint64_t>(num_rows_, 1));
  for (uint32_t c = 0; c < dim_; ++c) mean[c] = static_cast<float>(sum_[c] / count);
  return mean;
}

std::vector<double> Moments::About(std::span<const float> center) const {
  const double count = static_cast<double>(std::max<uint64_t>(num_rows_, 1));
  std::vector<double> out(products_.size());
  for (size_t i = 0; i < dim_; ++i) {
    for (size_t j = 0; j <= i; ++j) {
      const double a = center[i], b = center[j];
      const double mean = num_rows_ == 0 ? 0.0
                                         : products_[i * dim_ + j] / count - a * sum_[j] / count -
                                               b * sum_[i] / count + a * b;
      out[i * dim_ + j] = out[j * dim_ + i] = mean;
    }
  }
  return out;
}

}  // namespace sketchkv::tune
