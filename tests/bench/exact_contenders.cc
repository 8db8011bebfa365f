#include "tests/bench/exact_contenders.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"
#include "tests/bench/data.h"
#include "tests/bench/exact_kernels.h"
#include "tests/bench/threads.h"

namespace sketchkv::bench {
namespace {

constexpr size_t kWindowTokens = 4096;
constexpr size_t kCheckedTokens = 256;
constexpr size_t kRowBytes = kDim * sizeof(uint16_t);
constexpr float kScale = 0.08838835f;  // 1 / sqrt(kDim)
constexpr size_t kPage = 4096;

absl::StatusOr<const ExactKernels*> Choose(const Options& options) {
  const std::string name = options.Text("kernel", "");
  if (name.empty()) return &BestExactKernels();
  for (const ExactKernels* kernels : {
#if defined(__x86_64__)
         &kExactAvx512Bf16, &kExactAvx2,
#endif
             &kExactScalar
       }) {
    if (kernels->isa != name) continue;
    if (kernels->supported()) return kernels;
    return absl::UnavailableError(absl::StrCat("this CPU lacks ", name));
  }
  return absl::UnavailableError(absl::StrCat("this build lacks ", name));
}

double LargestDifference(const std::vector<float>& a, const std::vector<float>& b) {
  double largest = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    largest = std::max(largest, std::abs(double{a[i]} - double{b[i]}));
  }
  return std::isnan(largest) ? HUGE_VAL : largest;
}

// Queries and softmax weights are rounded to bf16 (2^-9) in the fast kernels.
absl::Status Check(const ExactKernels& kernels, const uint16_t* keys, const uint16_t* values,
                   const std::vector<float>& queries) {
  std::vector<float> want(8 * kCheckedTokens), got(want);
  kExactScalar.score(keys, kCheckedTokens, queries.data(), 8, want.data(), kCheckedTokens);
  for (const uint32_t count : {1, 4, 8}) {
    std::fill(got.begin(), got.end(), 0.0f);
    kernels.score(keys, kCheckedTokens, queries.data(), count, got.data(), kCheckedTokens);
    const std::vector<float> first(want.begin(), want.begin() + count * kCheckedTokens);
    const double off = LargestDifference(first, got);
    if (off > 0.15) {
      return absl::InternalError(
          absl::StrCat(kernels.isa, " scores of ", count, " queries are off by ", off));
    }
  }
  want.resize(4 * kDim);
  got.resize(4 * kDim);
  kExactScalar.attend4(keys, values, kCheckedTokens, queries.data(), kScale, want.data());
  kernels.attend4(keys, values, kCheckedTokens, queries.data(), kScale, got.data());
  const double off = LargestDifference(want, got);
  if (off > 0.005) {
    return absl::InternalError(absl::StrCat(kernels.isa, " outputs are off by ", off));
  }
  return absl::OkStatus();
}

class Exact : public PassContender {
 public:
  Exact(const Options& options, const ExactKernels* kernels, const Numbers& numbers,
        bool with_values)
      : PassContender(options),
        kernels_(*kernels),
        queries_(numbers.queries),
        num_queries_(static_cast<uint32_t>(options.Number("queries", 4))),
        threads_(options.Number("threads", 1)),
        bytes_per_key_(with_values ? 2 * kRowBytes : kRowBytes),
        tokens_(TokensIn(options, static_cast<double>(bytes_per_key_), kCheckedTokens * threads_)),
        context_(std::min<size_t>(tokens_ / threads_, options.Number("context", tokens_))),
        keys_(Bf16Rows(numbers.keys, tokens_)),
        values_(Bf16Rows(numbers.values, with_values ? tokens_ : kCheckedTokens)) {}

  [[nodiscard]] absl::Status SelfCheck() const {
    return Check(kernels_, keys_.as<uint16_t>(), values_.as<uint16_t>(), queries_);
  }
  [[nodiscard]] double bytes_per_unit() const override {
    return static_cast<double>(bytes_per_key_);
  }

 protected:
  virtual void Call(size_t begin, size_t end) = 0;

  void Pass() override {
    OnThreads(static_cast<int>(threads_), [this](int thread) {
      const size_t begin = thread * tokens_per_thread();
      for (size_t t = 0; t < tokens_per_thread(); t += context_) {
        Call(begin + t, begin + t + context_);
      }
    });
  }
  [[nodiscard]] double units_per_pass() const override {
    return static_cast<double>(tokens_per_thread() * threads_);
  }
  // Whole calls only.
  [[nodiscard]] size_t tokens_per_thread() const {
    return tokens_ / threads_ / context_ * context_;
  }

  const ExactKernels& kernels_;
  const std::vector<float> queries_;
  const uint32_t num_queries_;
  const size_t threads_;
  const size_t bytes_per_key_;
  const size_t tokens_;
  const size_t context_;
  const Buffer keys_;
  const Buffer values_;
};

class ExactScore final : public Exact {
 public:
  using Exact::Exact;

 private:
  void Call(size_t begin, size_t end) override {
    std::vector<float> window(kWindowTokens * num_queries_);
    for (size_t t = begin; t < end; t += kWindowTokens) {
      kernels_.score(keys_.as<uint16_t>() + t * kDim, std::min(kWindowTokens, end - t),
                     queries_.data(), num_queries_, window.data(), kWindowTokens);
    }
    Keep(window[0]);
  }
};

class ExactAttend final : public Exact {
 public:
  using Exact::Exact;

 private:
  void Call(size_t begin, size_t end) override {
    std::vector<float> out(4 * kDim);
    kernels_.attend4(keys_.as<uint16_t>() + begin * kDim, values_.as<uint16_t>() + begin * kDim,
                     end - begin, queries_.data(), kScale, out.data());
    Keep(out[0]);
  }
};

// Random bytes: keys as they are.
class Stream final : public PassContender {
 public:
  Stream(const Options& options, const ExactKernels* kernels, const Numbers& numbers, bool copy)
      : PassContender(options),
        kernels_(*kernels),
        threads_(options.Number("threads", 1)),
        bytes_(TokensIn(options, kRowBytes, kPage / kRowBytes * threads_) * kRowBytes),
        from_(Bf16Rows(numbers.keys, bytes_ / kRowBytes)),
        to_(copy ? bytes_ : 0),
        copy_(copy) {}

  [[nodiscard]] double bytes_per_unit() const override { return 1; }

 private:
  void Pass() override {
    OnThreads(static_cast<int>(threads_), [this](int thread) {
      const size_t share = bytes_ / threads_, begin = thread * share;
      if (copy_) {
        std::memcpy(to_.data() + begin, from_.data() + begin, share);
      } else {
        Keep(kernels_.read(from_.data() + begin, share));
      }
    });
    if (copy_) Keep(to_.data()[0]);
  }
  [[nodiscard]] double units_per_pass() const override { return static_cast<double>(bytes_); }

  const ExactKernels& kernels_;
  const size_t threads_;
  const size_t bytes_;
  const Buffer from_;
  const Buffer to_;
  const bool copy_;
};

template <typename T>
Registry::Factory MakeExact(bool with_values) {
  return [with_values](const Options& options) -> Made {
    SKETCHKV_ASSIGN_OR_RETURN(const ExactKernels* kernels, Choose(options));
    SKETCHKV_ASSIGN_OR_RETURN(const Numbers numbers, ReadNumbers(options));
    auto contender = std::make_unique<T>(options, kernels, numbers, with_values);
    SKETCHKV_RETURN_IF_ERROR(contender->SelfCheck());
    return contender;
  };
}

Registry::Factory MakeStream(bool copy) {
  return [copy](const Options& options) -> Made {
    SKETCHKV_ASSIGN_OR_RETURN(const ExactKernels* kernels, Choose(options));
    SKETCHKV_ASSIGN_OR_RETURN(const Numbers numbers, ReadNumbers(options));
    return std::make_unique<Stream>(options, kernels, numbers, copy);
  };
}

}  // namespace

void AddExactContenders(Registry* registry) {
  registry->Add("exact.score", MakeExact<ExactScore>(false));
  registry->Add("exact.attend", MakeExact<ExactAttend>(true));
  registry->Add("stream.read", MakeStream(false));
  registry->Add("stream.copy", MakeStream(true));
}

}  // namespace sketchkv::bench
