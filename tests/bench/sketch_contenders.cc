#include "tests/bench/sketch_contenders.h"

#include <algorithm>
#include <cstring>
#include <random>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"
#include "tests/bench/cells.h"
#include "tests/bench/data.h"
#include "tests/bench/threads.h"

namespace sketchkv::bench {
namespace {

// Cells of one head somewhere in memory, and the order in which a call visits them.
class Cells {
 public:
  static absl::StatusOr<std::unique_ptr<Cells>> Make(const Options& options, bool with_values) {
    const uint32_t block_tokens = static_cast<uint32_t>(options.Number("block", 256));
    SKETCHKV_ASSIGN_OR_RETURN(Numbers numbers, ReadNumbers(options));
    SKETCHKV_ASSIGN_OR_RETURN(auto codec, MakeCodec(options, block_tokens, 1));
    SKETCHKV_ASSIGN_OR_RETURN(const std::vector<std::byte> cells, EncodeCells(*codec, numbers));
    return std::unique_ptr<Cells>(
        new Cells(options, with_values, std::move(numbers), std::move(codec), cells));
  }

  [[nodiscard]] const CellCodec& codec() const { return codec_->cell(0, 0); }
  [[nodiscard]] uint32_t block_tokens() const { return codec_->layout().block_tokens; }
  [[nodiscard]] double bytes_per_key() const { return bytes_per_key_; }
  [[nodiscard]] size_t blocks() const { return visits_.size(); }
  // Cells [begin, end) in the order of visits.
  [[nodiscard]] std::span<const CellTokens> range(size_t begin, size_t end) const {
    return std::span(visits_).subspan(begin, end - begin);
  }
  [[nodiscard]] std::span<const float> queries(uint32_t count) const {
    return std::span(numbers_.queries).first(size_t{count} * kDim);
  }

 private:
  Cells(const Options& options, bool with_values, Numbers numbers,
        std::unique_ptr<BlockCodec> codec, const std::vector<std::byte>& cells)
      : numbers_(std::move(numbers)),
        codec_(std::move(codec)),
        bytes_per_key_(static_cast<double>(this->codec().key_bytes() +
                                           (with_values ? this->codec().value_bytes() : 0)) /
                       block_tokens()),
        stride_(options.Number("stride", 1) * this->codec().cell_bytes()),
        visits_(TokensIn(options, bytes_per_key_, block_tokens()) / block_tokens()),
        memory_(visits_.size() * stride_) {
    const size_t bytes = this->codec().cell_bytes(), distinct = cells.size() / bytes;
    for (size_t i = 0; i < visits_.size(); ++i) {
      std::byte* const cell = memory_.data() + i * stride_;
      std::memcpy(cell, cells.data() + i % distinct * bytes, bytes);
      visits_[i] = {cell, 0, block_tokens()};
    }
    if (options.Number("shuffled", 0) != 0) {
      std::shuffle(visits_.begin(), visits_.end(), std::mt19937_64(1));
    }
  }

  const Numbers numbers_;
  const std::unique_ptr<BlockCodec> codec_;
  const double bytes_per_key_;
  const size_t stride_;  // bytes
  std::vector<CellTokens> visits_;
  const Buffer memory_;
};

// Tokens that the codec is given at a time, as the service's splits.
constexpr uint32_t kGroupTokens = 4096;

// Goes over all cells, `context` tokens a call, calls divided over threads.
class Scan : public PassContender {
 public:
  Scan(const Options& options, std::unique_ptr<Cells> cells)
      : PassContender(options),
        cells_(std::move(cells)),
        queries_(static_cast<uint32_t>(options.Number("queries", 4))),
        threads_(static_cast<int>(options.Number("threads", 1))),
        blocks_per_call_(
            std::min(cells_->blocks() / threads_,
                     options.Number("context", uint64_t{1} << 40) / cells_->block_tokens())) {}

  [[nodiscard]] double bytes_per_unit() const override { return cells_->bytes_per_key(); }

 protected:
  // Blocks [begin, end), query preparation included.
  virtual void Call(size_t begin, size_t end) = 0;

  void Pass() override {
    OnThreads(threads_, [this](int thread) {
      const size_t share = blocks_per_thread();
      for (size_t begin = thread * share; begin < (thread + 1) * share; begin += blocks_per_call_) {
        Call(begin, begin + blocks_per_call_);
      }
    });
  }
  [[nodiscard]] double units_per_pass() const override {
    return static_cast<double>(blocks_per_thread()) * threads_ * cells_->block_tokens();
  }
  [[nodiscard]] size_t blocks_per_group() const { return kGroupTokens / cells_->block_tokens(); }
  // Whole calls only.
  [[nodiscard]] size_t blocks_per_thread() const {
    return cells_->blocks() / threads_ / blocks_per_call_ * blocks_per_call_;
  }

  const std::unique_ptr<Cells> cells_;
  const uint32_t queries_;
  const int threads_;
  const size_t blocks_per_call_;
};

class ScoreScan final : public Scan {
 public:
  using Scan::Scan;

 private:
  void Call(size_t begin, size_t end) override {
    const CellCodec& codec = cells_->codec();
    const auto prepared = codec.PrepareQueries(cells_->queries(queries_));
    std::vector<float> window(size_t{kGroupTokens} * queries_);
    for (size_t block = begin; block < end; block += blocks_per_group()) {
      codec.Score(cells_->range(block, std::min(block + blocks_per_group(), end)), *prepared,
                  window.data(), kGroupTokens);
    }
    Keep(window[0]);
  }
};

class AttendScan final : public Scan {
 public:
  using Scan::Scan;

 private:
  void Call(size_t begin, size_t end) override {
    const CellCodec& codec = cells_->codec();
    const auto prepared = codec.PrepareQueries(cells_->queries(queries_));
    AttentionPartial partial = codec.NewPartial(queries_);
    AttentionOptions options;
    options.softmax_scale = 0.08838835f;  // 1 / sqrt(128)
    for (size_t block = begin; block < end; block += blocks_per_group()) {
      codec.Attend(cells_->range(block, std::min(block + blocks_per_group(), end)), *prepared,
                   options, &partial);
    }
    std::vector<float> out(size_t{queries_} * kDim), lse(queries_);
    codec.Finish(partial, out.data(), lse.data());
    Keep(out[0]);
  }
};

template <typename T>
Registry::Factory Make(bool with_values) {
  return [with_values](const Options& options) -> Made {
    const uint64_t block = options.Number("block", 256);
    if (block == 0 || kGroupTokens % block != 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("block is ", block, ", must divide ", kGroupTokens));
    }
    if (options.Number("context", block) < block) {
      return absl::InvalidArgumentError(
          absl::StrCat("context is ", options.Number("context", block), ", want at least ", block));
    }
    SKETCHKV_ASSIGN_OR_RETURN(auto cells, Cells::Make(options, with_values));
    if (cells->blocks() < options.Number("threads", 1)) {
      return absl::InvalidArgumentError(absl::StrCat("bytes holds ", cells->blocks(),
                                                     " blocks for ", options.Number("threads", 1),
                                                     " threads"));
    }
    return std::make_unique<T>(options, std::move(cells));
  };
}

}  // namespace

void AddSketchContenders(Registry* registry) {
  registry->Add("sketch.score", Make<ScoreScan>(false));
  registry->Add("sketch.attend", Make<AttendScan>(true));
}

}  // namespace sketchkv::bench
