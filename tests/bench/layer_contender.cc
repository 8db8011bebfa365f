#include "tests/bench/layer_contender.h"

#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "kernels/base/status_macros.h"
#include "tests/bench/cells.h"
#include "tests/bench/data.h"
#include "tests/bench/threads.h"

namespace sketchkv::bench {
namespace {

constexpr uint32_t kHeads = 8;
constexpr uint32_t kQueries = 4;
constexpr uint32_t kGroupTokens = 4096;  // as the service's splits

// The server's threads have used their stacks before; these are new, and would fault pages in.
void TouchStack() {
  char pages[64 << 10];
  std::memset(pages, 1, sizeof(pages));
  Keep(pages);
}

class Layer final : public Contender {
 public:
  Layer(const Options& options, std::unique_ptr<BlockCodec> codec,
        const std::vector<std::byte>& cells, Numbers numbers)
      : codec_(std::move(codec)),
        numbers_(std::move(numbers)),
        threads_(options.Number("threads", 1)),
        block_tokens_(codec_->layout().block_tokens),
        sequences_(options.Number("sequences", 1)),
        blocks_(options.Number("tokens", 1024) / block_tokens_),
        slot_bytes_(options.Number("layers", 2) * codec_->slot_bytes()),
        slots_(sequences_ * blocks_ * slot_bytes_) {
    const size_t cell_bytes = codec_->cell_bytes(0), distinct = cells.size() / cell_bytes;
    for (size_t block = 0; block < sequences_ * blocks_; ++block) {
      for (uint32_t head = 0; head < kHeads; ++head) {
        const size_t from = (block * kHeads + head) % distinct;
        std::memcpy(slots_.data() + block * slot_bytes_ + codec_->cell_offset(0, head),
                    cells.data() + from * cell_bytes, cell_bytes);
      }
    }
  }

  absl::StatusOr<Repetition> Run() override {
    std::vector<double> times(threads_);
    OnThreads(static_cast<int>(threads_), [&](int thread) {
      TouchStack();
      const double begin = Now();
      for (size_t unit = thread; unit < sequences_ * kHeads; unit += threads_) {
        Attend(unit / kHeads, unit % kHeads);
      }
      times[thread] = Now() - begin;
    });
    return Repetition{*std::max_element(times.begin(), times.end()), 1};
  }

 private:
  void Attend(size_t sequence, uint32_t head) const {
    const CellCodec& codec = codec_->cell(0, head);
    const auto prepared = codec.PrepareQueries(std::span(numbers_.queries).first(kQueries * kDim));
    AttentionPartial partial = codec.NewPartial(kQueries);
    AttentionOptions options;
    options.softmax_scale = 0.08838835f;  // 1 / sqrt(128)
    const size_t group = std::max<size_t>(kGroupTokens / block_tokens_, 1);
    std::vector<CellTokens> cells;
    const std::byte* const slots = slots_.data() + sequence * blocks_ * slot_bytes_;
    for (size_t block = 0; block < blocks_; ++block) {
      cells.push_back(
          {slots + block * slot_bytes_ + codec_->cell_offset(0, head), 0, block_tokens_});
      if (cells.size() < group && block + 1 < blocks_) continue;
      codec.Attend(cells, *prepared, options, &partial);
      cells.clear();
    }
    float out[kQueries * kDim], lse[kQueries];
    codec.Finish(partial, out, lse);
    Keep(out);
  }

  const std::unique_ptr<BlockCodec> codec_;
  const Numbers numbers_;
  const size_t threads_;
  const uint32_t block_tokens_;
  const size_t sequences_;
  const size_t blocks_;  // of a sequence
  const size_t slot_bytes_;
  const Buffer slots_;
};

Made Make(const Options& options) {
  const uint32_t block = static_cast<uint32_t>(options.Number("block", 16));
  SKETCHKV_ASSIGN_OR_RETURN(Numbers numbers, ReadNumbers(options));
  SKETCHKV_ASSIGN_OR_RETURN(auto codec, MakeCodec(options, block, kHeads));
  SKETCHKV_ASSIGN_OR_RETURN(const std::vector<std::byte> cells, EncodeCells(*codec, numbers));
  return std::make_unique<Layer>(options, std::move(codec), cells, std::move(numbers));
}

}  // namespace

void AddLayerContender(Registry* registry) { registry->Add("kernel.layer", Make); }

}  // namespace sketchkv::bench
