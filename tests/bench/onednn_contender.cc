#include "tests/bench/onednn_contender.h"

#include <algorithm>
#include <dnnl.hpp>
#include <optional>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"
#include "tests/bench/data.h"

namespace sketchkv::bench {
namespace {

constexpr size_t kCallTokens = 4096;

using Memory = dnnl::memory;

// One matmul of kCallTokens keys: queries [q, d] times keys^T [d, n], or keys [n, d] times
// queries^T [d, q]. What is transposed lies in memory as it is; only its strides say so.
class Product {
 public:
  Product(const dnnl::engine& engine, int64_t queries, int64_t tokens, bool queries_first)
      : queries_first_(queries_first) {
    const int64_t dim = kDim;
    const int64_t rows = queries_first ? queries : tokens;
    const int64_t columns = queries_first ? tokens : queries;
    const Memory::desc left({rows, dim}, Memory::data_type::bf16, Memory::format_tag::ab);
    const Memory::desc right({dim, columns}, Memory::data_type::bf16, Memory::format_tag::ba);
    const Memory::desc out({rows, columns}, Memory::data_type::f32, Memory::format_tag::ab);
    matmul_ =
        dnnl::matmul(dnnl::matmul::primitive_desc(dnnl::matmul::desc(left, right, out), engine));
    left_ = Memory(left, engine, nullptr);
    right_ = Memory(right, engine, nullptr);
    out_ = Memory(out, engine, nullptr);
  }

  void Run(dnnl::stream* stream, uint16_t* queries, uint16_t* keys, float* scores) {
    left_.set_data_handle(queries_first_ ? queries : keys);
    right_.set_data_handle(queries_first_ ? keys : queries);
    out_.set_data_handle(scores);
    matmul_.execute(*stream,
                    {{DNNL_ARG_SRC, left_}, {DNNL_ARG_WEIGHTS, right_}, {DNNL_ARG_DST, out_}});
    stream->wait();
  }

 private:
  const bool queries_first_;
  dnnl::matmul matmul_;
  Memory left_, right_, out_;
};

class Scores final : public PassContender {
 public:
  Scores(const Options& options, const Numbers& numbers)
      : PassContender(options),
        num_queries_(options.Number("queries", 4)),
        tokens_(TokensIn(options, kDim * sizeof(uint16_t),
                         std::min<size_t>(kCallTokens, options.Number("bytes", 0) / 256))),
        call_tokens_(std::min(kCallTokens, tokens_)),
        keys_(Bf16Rows(numbers.keys, tokens_)),
        queries_(Bf16Rows(numbers.queries, 8)),
        scores_(call_tokens_ * num_queries_),
        engine_(dnnl::engine::kind::cpu, 0),
        stream_(engine_) {
    Product orders[] = {Make(false), Make(true)};
    double times[2] = {};
    for (int round = 0; round < 2; ++round) {  // the first one warms
      for (int order = 0; order < 2; ++order) {
        const double begin = Now();
        orders[order].Run(&stream_, queries_.as<uint16_t>(), keys_.as<uint16_t>(), scores_.data());
        times[order] = Now() - begin;
      }
    }
    product_.emplace(Make(times[1] < times[0]));
  }

  [[nodiscard]] double bytes_per_unit() const override { return kDim * sizeof(uint16_t); }

 private:
  [[nodiscard]] Product Make(bool queries_first) const {
    return {engine_, static_cast<int64_t>(num_queries_), static_cast<int64_t>(call_tokens_),
            queries_first};
  }

  void Pass() override {
    for (size_t begin = 0; begin < tokens_; begin += call_tokens_) {
      product_->Run(&stream_, queries_.as<uint16_t>(), keys_.as<uint16_t>() + begin * kDim,
                    scores_.data());
    }
    Keep(scores_[0]);
  }
  [[nodiscard]] double units_per_pass() const override { return static_cast<double>(tokens_); }

  const size_t num_queries_;
  const size_t tokens_;
  const size_t call_tokens_;
  const Buffer keys_;
  const Buffer queries_;
  std::vector<float> scores_;
  dnnl::engine engine_;
  dnnl::stream stream_;
  std::optional<Product> product_;
};

Made Make(const Options& options) {
  SKETCHKV_ASSIGN_OR_RETURN(const Numbers numbers, ReadNumbers(options));
  try {
    return std::make_unique<Scores>(options, numbers);
  } catch (const dnnl::error& error) {  // no bf16 on this CPU
    return absl::UnavailableError(absl::StrCat("oneDNN: ", error.what()));
  }
}

}  // namespace

void AddOneDnnContender(Registry* registry) { registry->Add("onednn.score", Make); }

}  // namespace sketchkv::bench
