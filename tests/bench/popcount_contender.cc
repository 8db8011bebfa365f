#include "tests/bench/popcount_contender.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"
#include "kernels/format.h"
#include "tests/bench/cells.h"
#include "tests/bench/data.h"
#include "tests/bench/popcount_kernel.h"

namespace sketchkv::bench {
namespace {

constexpr uint32_t kRows = 64 * kCodeWords;
constexpr size_t kBlockTokens = 256;
constexpr size_t kWindowTokens = 4096;
constexpr size_t kCodeBytes = kCodeWords * 8 + 2 * sizeof(float);

PlaneQuery Quantize(const float* projected, int num_planes) {
  PlaneQuery query = {};
  const auto [low, high] = std::minmax_element(projected, projected + kRows);
  query.low = *low;
  query.step = (*high - *low) / static_cast<float>((1 << num_planes) - 1);
  for (uint32_t row = 0; row < kRows; ++row) {
    const auto level = static_cast<uint32_t>((projected[row] - *low) / query.step + 0.5f);
    for (int plane = 0; plane < num_planes; ++plane) {
      const uint64_t bit = level >> (num_planes - 1 - plane) & 1;
      query.planes[plane][row / 64] |= bit << row % 64;
    }
    query.sum += query.low + query.step * static_cast<float>(level);
  }
  return query;
}

class Popcount final : public PassContender {
 public:
  Popcount(const Options& options, const BlockCodec& codec, const std::vector<std::byte>& cells,
           const Numbers& numbers)
      : PassContender(options),
        planes_(static_cast<int>(options.Number("planes", 4))),
        tokens_(TokensIn(options, kCodeBytes, kBlockTokens)),
        codes_(tokens_ * kCodeWords * sizeof(uint64_t)),
        scales_(tokens_ * sizeof(float)),
        ones_(tokens_ * sizeof(float)),
        projected_(4 * kRows) {
    Project(codec.dense_projection(0), numbers.queries);
    const CellFormat format = CellFormat::Make(codec.layout(), codec.profiles()[0]);
    const size_t distinct = cells.size() / format.cell_bytes * kBlockTokens;
    for (size_t k = 0; k < tokens_; ++k) {
      const size_t token = k % distinct;
      const std::byte* cell = cells.data() + token / kBlockTokens * format.cell_bytes;
      Take(format, cell, static_cast<uint32_t>(token % kBlockTokens), k);
    }
  }

  // The first cell's scores against those of the codec.
  [[nodiscard]] absl::Status SelfCheck(const BlockCodec& codec, std::span<const std::byte> cell,
                                       const Numbers& numbers) {
    std::vector<float> want(4 * kBlockTokens), got(want);
    const CellCodec& cells = codec.cell(0, 0);
    const auto prepared = cells.PrepareQueries(std::span(numbers.queries).first(4 * kDim));
    cells.Score(cell, 0, kBlockTokens, *prepared, want.data(), kBlockTokens);
    Score(0, kBlockTokens, got.data(), kBlockTokens);
    double error = 0, energy = 0;
    for (size_t i = 0; i < want.size(); ++i) {
      error += std::pow(double{got[i]} - double{want[i]}, 2);
      energy += std::pow(double{want[i]}, 2);
    }
    const double relative = std::sqrt(error / energy), allowed = planes_ == 4 ? 0.25 : 0.02;
    if (relative <= allowed) return absl::OkStatus();
    return absl::InternalError(absl::StrCat("scores of ", planes_, " planes are off by ", relative,
                                            " of their RMS, allowed ", allowed));
  }

  [[nodiscard]] double bytes_per_unit() const override { return kCodeBytes; }

 private:
  void Project(std::span<const float> rows, const std::vector<float>& queries) {
    for (size_t q = 0; q < 4; ++q) {
      for (uint32_t row = 0; row < kRows; ++row) {
        for (uint32_t c = 0; c < kDim; ++c) {
          projected_[q * kRows + row] += rows[size_t{row} * kDim + c] * queries[q * kDim + c];
        }
      }
    }
  }

  // Code, scale and number of ones of one token of a cell.
  void Take(const CellFormat& format, const std::byte* cell, uint32_t token, size_t k) {
    const uint32_t tile = token / kTileTokens, lane = token % kTileTokens;
    uint16_t scale = 0;
    std::memcpy(&scale, cell + format.scale_offset(tile, format.key_scale_row) + lane * 2, 2);
    scales_.as<float>()[k] = std::bit_cast<float>(uint32_t{scale} << 15);
    int ones = 0;
    for (uint32_t word = 0; word < 2 * kCodeWords; ++word) {
      uint32_t bits = 0;
      std::memcpy(&bits, cell + format.plane_offset(tile) + word * kLineBytes + lane * 4, 4);
      ones += std::popcount(bits);
      uint64_t* const group = codes_.as<uint64_t>() + k / 8 * 8 * kCodeWords;
      group[word / 2 * 8 + k % 8] |= uint64_t{bits} << word % 2 * 32;
    }
    ones_.as<float>()[k] = static_cast<float>(ones);
  }

  void Score(size_t begin, size_t count, float* scores, size_t stride) {
    PlaneQuery queries[4];
    for (size_t q = 0; q < 4; ++q) queries[q] = Quantize(&projected_[q * kRows], planes_);
    for (size_t k = begin; k < begin + count; k += kWindowTokens) {
      PopcountScores4(codes_.as<uint64_t>() + k * kCodeWords, scales_.as<float>() + k,
                      ones_.as<float>() + k, std::min(kWindowTokens, begin + count - k), queries,
                      planes_, scores, stride);
    }
  }

  void Pass() override {
    std::vector<float> window(4 * kWindowTokens);
    Score(0, tokens_, window.data(), kWindowTokens);
    Keep(window[0]);
  }
  [[nodiscard]] double units_per_pass() const override { return static_cast<double>(tokens_); }

  const int planes_;
  const size_t tokens_;
  const Buffer codes_;
  const Buffer scales_;
  const Buffer ones_;
  std::vector<float> projected_;  // [4][kRows]
};

Made Make(const Options& options) {
  if (!PopcountSupported()) return absl::UnavailableError("this CPU lacks vpopcntq");
  SKETCHKV_ASSIGN_OR_RETURN(const Numbers numbers, ReadNumbers(options));
  // Dense rows, which the codec tells; the codes have the form of all sign codes.
  const Options dense({{"profile", "qjl"}, {"projection", "orthogonal"}});
  SKETCHKV_ASSIGN_OR_RETURN(const auto codec, MakeCodec(dense, kBlockTokens, 1));
  SKETCHKV_ASSIGN_OR_RETURN(const std::vector<std::byte> cells, EncodeCells(*codec, numbers));
  auto contender = std::make_unique<Popcount>(options, *codec, cells, numbers);
  SKETCHKV_RETURN_IF_ERROR(
      contender->SelfCheck(*codec, std::span(cells).first(codec->cell_bytes(0)), numbers));
  return contender;
}

}  // namespace

void AddPopcountContender(Registry* registry) { registry->Add("popcount.score", Make); }

}  // namespace sketchkv::bench
