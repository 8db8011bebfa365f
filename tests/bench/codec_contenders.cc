#include "tests/bench/codec_contenders.h"

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
constexpr size_t kStride = kHeads * kDim * sizeof(uint16_t);  // from token to token

// Blocks of raw keys and values, and a slot for each.
class Blocks : public PassContender {
 public:
  Blocks(const Options& options, std::unique_ptr<BlockCodec> codec, const Numbers& numbers)
      : PassContender(options),
        codec_(std::move(codec)),
        threads_(options.Number("threads", 1)),
        tokens_(codec_->layout().block_tokens),
        blocks_(TokensIn(options, 2 * kStride, tokens_) / tokens_),
        keys_(Bf16Rows(numbers.keys, blocks_ * tokens_ * kHeads)),
        values_(Bf16Rows(numbers.values, blocks_ * tokens_ * kHeads)),
        slots_(blocks_ * codec_->slot_bytes()) {}

  [[nodiscard]] absl::Status Encode(size_t block) const {
    for (uint32_t head = 0; head < kHeads; ++head) {
      const size_t row = RowOffset(block, head);
      SKETCHKV_RETURN_IF_ERROR(codec_->cell(0, head).Encode({keys_.data() + row, kStride},
                                                            {values_.data() + row, kStride},
                                                            tokens_, Cell(block, head)));
    }
    return absl::OkStatus();
  }

  // Over the raw keys and values.
  [[nodiscard]] absl::Status Decode(size_t block) const {
    for (uint32_t head = 0; head < kHeads; ++head) {
      const size_t row = RowOffset(block, head);
      SKETCHKV_RETURN_IF_ERROR(codec_->cell(0, head).Decode(
          Cell(block, head), tokens_, DType::kBf16, {keys_.data() + row, kStride}, DType::kBf16,
          {values_.data() + row, kStride}));
    }
    return absl::OkStatus();
  }

  [[nodiscard]] size_t blocks() const { return blocks_; }
  [[nodiscard]] double bytes_per_unit() const override { return 1; }

 protected:
  // Every block, divided over threads. What fails here failed before: when all were encoded once.
  void ForAll(absl::Status (Blocks::*work)(size_t block) const) const {
    OnThreads(static_cast<int>(threads_), [&](int thread) {
      for (size_t block = thread; block < blocks_; block += threads_) {
        Keep((this->*work)(block).ok());
      }
    });
  }
  [[nodiscard]] double units_per_pass() const override {
    return static_cast<double>(blocks_ * tokens_ * 2 * kStride);
  }

 private:
  [[nodiscard]] size_t RowOffset(size_t block, uint32_t head) const {
    return block * tokens_ * kStride + head * kDim * sizeof(uint16_t);
  }
  [[nodiscard]] std::span<std::byte> Cell(size_t block, uint32_t head) const {
    return {slots_.data() + block * codec_->slot_bytes() + codec_->cell_offset(0, head),
            codec_->cell_bytes(0)};
  }

  const std::unique_ptr<BlockCodec> codec_;
  const size_t threads_;
  const uint32_t tokens_;
  const size_t blocks_;
  const Buffer keys_;    // [blocks][tokens][kHeads][kDim]
  const Buffer values_;  // likewise
  const Buffer slots_;
};

class EncodeBlocks final : public Blocks {
 public:
  using Blocks::Blocks;

 private:
  void Pass() override { ForAll(&Blocks::Encode); }
};

class DecodeBlocks final : public Blocks {
 public:
  using Blocks::Blocks;

 private:
  void Pass() override { ForAll(&Blocks::Decode); }
};

template <typename T>
Made Make(const Options& options) {
  SKETCHKV_ASSIGN_OR_RETURN(const Numbers numbers, ReadNumbers(options));
  SKETCHKV_ASSIGN_OR_RETURN(
      auto codec, MakeCodec(options, static_cast<uint32_t>(options.Number("block", 256)), kHeads));
  auto contender = std::make_unique<T>(options, std::move(codec), numbers);
  for (size_t block = 0; block < contender->blocks(); ++block) {
    SKETCHKV_RETURN_IF_ERROR(contender->Encode(block));
  }
  return contender;
}

}  // namespace

void AddCodecContenders(Registry* registry) {
  registry->Add("codec.encode", Make<EncodeBlocks>);
  registry->Add("codec.decode", Make<DecodeBlocks>);
}

}  // namespace sketchkv::bench
