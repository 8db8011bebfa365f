#include "tests/bench/qjl_contender.h"

#include <cblas.h>

#include <algorithm>
#include <bit>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"
#include "tests/bench/cells.h"
#include "tests/bench/data.h"
#include "tests/bench/qjl_steps.h"

namespace sketchkv::bench {
namespace {

constexpr size_t kHeads = 8;
constexpr size_t kStride = kHeads * kDim;  // elements from token to token

// One head of one block, as stored.
struct EncodedHead {
  explicit EncodedHead(size_t tokens)
      : signs(tokens * qjl::kSignBits / 32),
        outlier_signs(signs.size()),
        norms(tokens),
        outlier_norms(tokens),
        channels(tokens / qjl::kGroupTokens * qjl::kOutliers),
        value_codes(tokens * kDim / 4),
        value_ranges(tokens * kDim / qjl::kValueGroup * 2) {}

  std::vector<uint32_t> signs, outlier_signs;
  std::vector<float> norms, outlier_norms;
  std::vector<uint8_t> channels, value_codes;
  std::vector<float> value_ranges;
};

class QjlEncode final : public PassContender {
 public:
  QjlEncode(const Options& options, const Numbers& numbers, std::span<const float> rows)
      : PassContender(options),
        tokens_(options.Number("block", 256)),
        blocks_(TokensIn(options, 2 * kStride * sizeof(uint16_t), tokens_) / tokens_),
        rows_(rows.begin(), rows.end()),
        keys_(Bf16Rows(numbers.keys, blocks_ * tokens_ * kHeads)),
        values_(Bf16Rows(numbers.values, blocks_ * tokens_ * kHeads)),
        wide_(tokens_ * kDim),
        projected_(tokens_ * qjl::kSignBits),
        outlier_projected_(qjl::kGroupTokens * qjl::kSignBits),
        outlier_rows_(qjl::kSignBits * qjl::kOutliers),
        outliers_(qjl::kGroupTokens * qjl::kOutliers),
        encoded_(blocks_ * kHeads, EncodedHead(tokens_)) {}

  [[nodiscard]] double bytes_per_unit() const override { return 1; }

  // That signs and channels mean what they should, of the first group of the first head: the share
  // of wrong signs of products made here in the obvious way.
  [[nodiscard]] absl::Status SelfCheck() {
    Encode(0, 0);
    const EncodedHead& head = encoded_[0];
    qjl::Widen(keys_.as<uint16_t>(), kStride, tokens_, wide_.data());
    size_t wrong = 0;
    for (size_t t = 0; t < qjl::kGroupTokens; ++t) {
      for (size_t row = 0; row < qjl::kSignBits; ++row) {
        double rest = 0;
        for (size_t c = 0; c < kDim; ++c) {
          const auto end = head.channels.begin() + qjl::kOutliers;
          if (std::find(head.channels.begin(), end, c) != end) continue;
          rest += double{rows_[row * kDim + c]} * wide_[t * kDim + c];
        }
        const size_t bit = t * qjl::kSignBits + row;
        wrong += ((head.signs[bit / 32] >> bit % 32 & 1) != 0) != (rest < 0);
      }
    }
    if (wrong <= 2) return absl::OkStatus();  // rounding may turn one near zero
    return absl::InternalError(absl::StrCat(wrong, " of ", qjl::kGroupTokens * qjl::kSignBits,
                                            " signs are wrong, allowed 2"));
  }

 private:
  void Encode(size_t block, size_t head_index) {
    const size_t at = block * tokens_ * kStride + head_index * kDim;
    EncodedHead& head = encoded_[block * kHeads + head_index];
    qjl::Widen(keys_.as<uint16_t>() + at, kStride, tokens_, wide_.data());
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, static_cast<int>(tokens_), qjl::kSignBits,
                kDim, 1.0f, wide_.data(), kDim, rows_.data(), kDim, 0.0f, projected_.data(),
                qjl::kSignBits);
    for (size_t group = 0; group < tokens_ / qjl::kGroupTokens; ++group) EncodeGroup(group, &head);
    qjl::Widen(values_.as<uint16_t>() + at, kStride, tokens_, wide_.data());
    qjl::QuantizeValues(wide_.data(), tokens_, head.value_codes.data(), head.value_ranges.data());
  }

  void EncodeGroup(size_t group, EncodedHead* head) {
    const size_t token = group * qjl::kGroupTokens;
    const float* const keys = wide_.data() + token * kDim;
    uint8_t* const channels = head->channels.data() + group * qjl::kOutliers;
    qjl::TakeOutliers(keys, channels, outliers_.data());
    for (size_t row = 0; row < qjl::kSignBits; ++row) {
      for (size_t o = 0; o < qjl::kOutliers; ++o) {
        outlier_rows_[row * qjl::kOutliers + o] = rows_[row * kDim + channels[o]];
      }
    }
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, qjl::kGroupTokens, qjl::kSignBits,
                qjl::kOutliers, 1.0f, outliers_.data(), qjl::kOutliers, outlier_rows_.data(),
                qjl::kOutliers, 0.0f, outlier_projected_.data(), qjl::kSignBits);
    qjl::Norms(keys, outliers_.data(), head->norms.data() + token,
               head->outlier_norms.data() + token);
    const size_t word = token * qjl::kSignBits / 32;
    qjl::PackSigns(projected_.data() + token * qjl::kSignBits, outlier_projected_.data(),
                   qjl::kGroupTokens * qjl::kSignBits, head->signs.data() + word,
                   head->outlier_signs.data() + word);
  }

  void Pass() override {
    for (size_t block = 0; block < blocks_; ++block) {
      for (size_t head = 0; head < kHeads; ++head) Encode(block, head);
    }
    Keep(encoded_[0]);
  }
  [[nodiscard]] double units_per_pass() const override {
    return static_cast<double>(blocks_ * tokens_ * 2 * kStride * sizeof(uint16_t));
  }

  const size_t tokens_;
  const size_t blocks_;
  const std::vector<float> rows_;  // [kSignBits][kDim]
  const Buffer keys_;              // [blocks][tokens][kHeads][kDim]
  const Buffer values_;
  std::vector<float> wide_;
  std::vector<float> projected_;
  std::vector<float> outlier_projected_;
  std::vector<float> outlier_rows_;
  std::vector<float> outliers_;
  std::vector<EncodedHead> encoded_;
};

Made Make(const Options& options) {
  if (!qjl::Supported()) return absl::UnavailableError("this CPU lacks AVX2");
  if (options.Number("block", 256) % qjl::kGroupTokens != 0) {
    return absl::InvalidArgumentError(absl::StrCat("block is ", options.Number("block", 256),
                                                   ", want a multiple of ", qjl::kGroupTokens));
  }
  SKETCHKV_ASSIGN_OR_RETURN(const Numbers numbers, ReadNumbers(options));
  const Options dense({{"profile", "qjl"}, {"projection", "orthogonal"}});
  SKETCHKV_ASSIGN_OR_RETURN(const auto codec, MakeCodec(dense, 16, 1));
  auto contender = std::make_unique<QjlEncode>(options, numbers, codec->dense_projection(0));
  SKETCHKV_RETURN_IF_ERROR(contender->SelfCheck());
  return contender;
}

}  // namespace

void AddQjlContender(Registry* registry) { registry->Add("qjl.encode", Make); }

}  // namespace sketchkv::bench
