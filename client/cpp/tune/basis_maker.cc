#include "client/cpp/tune/basis_maker.h"

#include <Eigen/Core>
#include <Eigen/QR>
#include <algorithm>
#include <cmath>
#include <random>

#include "absl/strings/str_cat.h"
#include "client/cpp/files/tables_file.h"

namespace sketchkv::tune {
namespace {

using Matrix = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

Matrix RandomRotation(Eigen::Index size, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<double> normal;
  const Matrix gaussian = Matrix::NullaryExpr(size, size, [&] { return normal(random); });
  return Eigen::HouseholderQR<Matrix>(gaussian).householderQ();
}

absl::Status Impossible(RowKind kind, uint32_t row_bits, uint32_t dim) {
  const std::vector<uint32_t> possible = PossibleRowBits(kind, dim);
  const auto above = std::lower_bound(possible.begin(), possible.end(), row_bits);
  std::string near;
  if (above != possible.begin()) near = absl::StrCat(*(above - 1));
  if (above != possible.end()) absl::StrAppend(&near, near.empty() ? "" : " or ", *above);
  return absl::InvalidArgumentError(absl::StrCat(kind == RowKind::kKeys ? "key" : "value",
                                                 "_row_bits is ", row_bits, ", with dim ", dim,
                                                 " it can be ", near));
}

}  // namespace

absl::StatusOr<Basis> MakeBasis(const Spectrum& spectrum, RowKind kind, uint32_t row_bits,
                                uint64_t seed) {
  const auto bits = AllotBits(spectrum.importance, kind, row_bits);
  if (!bits) return Impossible(kind, row_bits, spectrum.dim);
  const uint32_t dim = spectrum.dim;
  Basis basis;
  basis.group_bits = *bits;
  for (size_t first = 0; first < bits->size();) {
    size_t last = first;  // groups [first, last) have equal bits
    while (last < bits->size() && (*bits)[last] == (*bits)[first]) ++last;
    const size_t begin = first * kBasisGroupRows;
    const size_t end = std::min<size_t>(last * kBasisGroupRows, dim);
    const auto count = static_cast<Eigen::Index>(end - begin);
    const Eigen::Map<const Matrix> axes(spectrum.axes.data() + begin * dim, count, dim);
    const Matrix rows = RandomRotation(count, seed + first) * axes;
    for (Eigen::Index i = 0; i < rows.size(); ++i) {
      basis.rows.push_back(RoundToTable(static_cast<float>(rows.data()[i])));
    }
    double sum = 0;
    for (size_t i = begin; i < end; ++i) sum += spectrum.variances[i];
    const auto rms = static_cast<float>(std::sqrt(sum / static_cast<double>(end - begin)));
    basis.group_rms.insert(basis.group_rms.end(), last - first, rms);
    first = last;
  }
  return basis;
}

}  // namespace sketchkv::tune
