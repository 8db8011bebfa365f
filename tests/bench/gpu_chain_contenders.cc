#include "tests/bench/gpu_chain_contenders.h"

#include <utility>

#include "kernels/base/status_macros.h"
#include "tests/bench/data.h"
#include "tests/bench/gpu_chains.h"
#include "tests/bench/gpu_contender.h"

namespace sketchkv::bench {
namespace {

using testing::CheckCuda;

// Thread blocks that the card runs at a time, which is what launches are dealt out to.
cuda::ThreadBlocks AttendBlocks() {
  cuda::ThreadBlocks blocks{};
  CheckCuda(cuda::AttendBlocks(&blocks));
  return blocks;
}
cuda::ThreadBlocks ScoreBlocks() {
  int multiprocessors = 0;
  CheckCuda(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, 0));
  return {3 * static_cast<uint32_t>(multiprocessors)};  // as the service does
}

uint32_t NumQueries(const Options& options) {
  return static_cast<uint32_t>(options.Number("queries", 4));
}

// One launch over all sequences a pass.
class Attend final : public GpuContender {
 public:
  Attend(const Options& options, std::unique_ptr<GpuChains> chains, const Numbers& numbers)
      : GpuContender(options),
        chains_(std::move(chains)),
        launch_(*chains_, chains_->sequences, numbers.queries, NumQueries(options), AttendBlocks(),
                0) {}
  [[nodiscard]] double bytes_per_unit() const override {
    return chains_->num_cells * chains_->cell_bytes;
  }

 private:
  void Enqueue(cudaStream_t stream) override { launch_.Attend(stream, /*begins_early=*/false); }

  const std::unique_ptr<GpuChains> chains_;
  const ChainLaunch launch_;
};

// Scores are floats, or with option "halves" 1 halves.
class Score final : public GpuContender {
 public:
  Score(const Options& options, std::unique_ptr<GpuChains> chains, const Numbers& numbers)
      : GpuContender(options),
        chains_(std::move(chains)),
        launch_(*chains_, chains_->sequences, numbers.queries, NumQueries(options), ScoreBlocks(),
                chains_->sequences.front().token_end, options.Number("halves", 0) != 0) {}
  [[nodiscard]] double bytes_per_unit() const override {
    return chains_->num_cells * chains_->key_bytes;
  }

 private:
  void Enqueue(cudaStream_t stream) override { launch_.Score(stream); }

  const std::unique_ptr<GpuChains> chains_;
  const ChainLaunch launch_;
};

// A launch for each sequence, which stand for the layers of one, in a graph; so that no call finds
// its tokens in a cache and none waits for the host. A unit is one launch, which looks for cells
// while the one before it ends.
class AttendOneByOne final : public GpuContender {
 public:
  AttendOneByOne(const Options& options, std::unique_ptr<GpuChains> chains, const Numbers& numbers)
      : GpuContender(options), chains_(std::move(chains)) {
    const std::span<const cuda::TokenRange> sequences = chains_->sequences;
    for (size_t i = 0; i < sequences.size(); ++i) {
      launches_.push_back(std::make_unique<ChainLaunch>(*chains_, sequences.subspan(i, 1),
                                                        numbers.queries, NumQueries(options),
                                                        AttendBlocks(), 0));
    }
    cudaStream_t stream;
    cudaGraph_t graph;
    CheckCuda(cudaStreamCreate(&stream));
    CheckCuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
    for (const auto& launch : launches_) {
      launch->Attend(stream, /*begins_early=*/launch != launches_.front());
    }
    CheckCuda(cudaStreamEndCapture(stream, &graph));
    CheckCuda(cudaGraphInstantiate(&graph_, graph, 0));
    CheckCuda(cudaGraphDestroy(graph));
    CheckCuda(cudaStreamDestroy(stream));
  }
  ~AttendOneByOne() override { cudaGraphExecDestroy(graph_); }
  [[nodiscard]] double bytes_per_unit() const override {
    return chains_->num_cells * chains_->cell_bytes / units_per_pass();
  }

 private:
  void Enqueue(cudaStream_t stream) override { CheckCuda(cudaGraphLaunch(graph_, stream)); }
  [[nodiscard]] double units_per_pass() const override {
    return static_cast<double>(launches_.size());
  }

  const std::unique_ptr<GpuChains> chains_;
  std::vector<std::unique_ptr<ChainLaunch>> launches_;
  cudaGraphExec_t graph_ = nullptr;
};

template <typename T>
Made Make(const Options& options) {
  SKETCHKV_RETURN_IF_ERROR(DescribeCard().status());
  SKETCHKV_ASSIGN_OR_RETURN(const Numbers numbers, ReadNumbers(options));
  SKETCHKV_ASSIGN_OR_RETURN(auto chains, GpuChains::Make(options));
  return std::make_unique<T>(options, std::move(chains), numbers);
}

}  // namespace

void AddGpuChainContenders(Registry* registry) {
  registry->Add("gpu.score", Make<Score>);
  registry->Add("gpu.attend", Make<Attend>);
  registry->Add("gpu.attend.b1", Make<AttendOneByOne>);
}

}  // namespace sketchkv::bench
