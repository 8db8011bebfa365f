#include "tests/bench/openblas_contender.h"

#include <cblas.h>

#include <algorithm>
#include <vector>

#include "kernels/base/status_macros.h"
#include "tests/bench/data.h"

namespace sketchkv::bench {
namespace {

// Keys of one call: a call's own cost vanishes, the scores stay in cache.
constexpr size_t kCallTokens = 8192;

class Scores final : public PassContender {
 public:
  Scores(const Options& options, const Numbers& numbers)
      : PassContender(options),
        num_queries_(static_cast<int>(options.Number("queries", 4))),
        tokens_(TokensIn(options, kDim * sizeof(float), 256)),
        keys_(tokens_ * kDim * sizeof(float)),
        queries_(numbers.queries),
        scores_(kCallTokens * num_queries_) {
    float* const out = keys_.as<float>();
    for (size_t i = 0; i < tokens_ * kDim; ++i) out[i] = numbers.keys[i % numbers.keys.size()];
    Call(0);
    const double begin = Now();
    Call(0);
    const double middle = Now();
    queries_first_ = false;
    Call(0);
    queries_first_ = middle - begin < Now() - middle;
  }

  [[nodiscard]] double bytes_per_unit() const override { return kDim * sizeof(float); }

 private:
  void Call(size_t begin) {
    const int count = static_cast<int>(std::min(kCallTokens, tokens_ - begin)), dim = kDim;
    const float* const keys = keys_.as<float>() + begin * kDim;
    if (num_queries_ == 1) {
      cblas_sgemv(CblasRowMajor, CblasNoTrans, count, dim, 1.0f, keys, dim, queries_.data(), 1,
                  0.0f, scores_.data(), 1);
    } else if (queries_first_) {
      cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, num_queries_, count, dim, 1.0f,
                  queries_.data(), dim, keys, dim, 0.0f, scores_.data(), count);
    } else {
      cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, count, num_queries_, dim, 1.0f, keys,
                  dim, queries_.data(), dim, 0.0f, scores_.data(), num_queries_);
    }
    Keep(scores_[0]);
  }

  void Pass() override {
    for (size_t begin = 0; begin < tokens_; begin += kCallTokens) Call(begin);
  }
  [[nodiscard]] double units_per_pass() const override { return static_cast<double>(tokens_); }

  const int num_queries_;
  const size_t tokens_;
  const Buffer keys_;
  const std::vector<float> queries_;
  std::vector<float> scores_;
  bool queries_first_ = true;
};

Made Make(const Options& options) {
  SKETCHKV_ASSIGN_OR_RETURN(const Numbers numbers, ReadNumbers(options));
  return std::make_unique<Scores>(options, numbers);
}

}  // namespace

void AddOpenBlasContender(Registry* registry) { registry->Add("openblas.score", Make); }

}  // namespace sketchkv::bench
