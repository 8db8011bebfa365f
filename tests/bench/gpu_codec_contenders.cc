#include "tests/bench/gpu_codec_contenders.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"
#include "kernels/cuda/plan.h"
#include "tests/bench/cells.h"
#include "tests/bench/data.h"
#include "tests/bench/gpu_chains.h"
#include "tests/bench/gpu_contender.h"

namespace sketchkv::bench {
namespace {

using testing::CheckCuda;
using testing::DeviceArray;

constexpr size_t kRow = kDim * sizeof(uint16_t);
constexpr size_t kStride = kGpuHeads * kRow;  // from token to token

DeviceArray<uint8_t> RowsOnCard(const std::vector<float>& rows, size_t num_bytes) {
  const Buffer distinct = Bf16Rows(rows, rows.size() / kDim);
  return RepeatedOnCard({distinct.data(), rows.size() * sizeof(uint16_t)}, num_bytes);
}

// Blocks of raw keys and values, and a slot for each.
class Blocks : public GpuContender {
 public:
  Blocks(const Options& options, std::unique_ptr<BlockCodec> codec, const cuda::CodecPlan& plan,
         size_t num_blocks, const Numbers& numbers)
      : GpuContender(options),
        codec_(std::move(codec)),
        plan_(plan),
        num_cells_(static_cast<uint32_t>(num_blocks * kGpuHeads)),
        keys_(RowsOnCard(numbers.keys, num_blocks * block_tokens() * kStride)),
        values_(RowsOnCard(numbers.values, keys_.size())),
        slots_(num_blocks * codec_->slot_bytes()),
        table_(std::span<const cuda::CellRows>(Table())),
        checks_(num_cells_) {
    slots_.Fill(0xA5);
    checks_.Fill(0);
  }

  void Encode(cudaStream_t stream) const {
    CheckCuda(cuda::LaunchEncode(
        plan_, {table_.data(), num_cells_, cuda::RowType::kBf16, kStride, kStride, checks_.data()},
        stream));
  }
  void Decode(cudaStream_t stream) const {
    CheckCuda(cuda::LaunchDecode(
        plan_, {table_.data(), num_cells_, cuda::RowType::kBf16, kStride, kStride}, stream));
  }

  // Encodes all; DATA_LOSS where the last block's cells differ from the CPU's.
  [[nodiscard]] absl::Status EncodeAndCheck() {
    Encode(nullptr);
    CheckCuda(cudaDeviceSynchronize());
    const size_t block_bytes = block_tokens() * kStride, last = num_cells_ / kGpuHeads - 1;
    std::vector<std::byte> keys(block_bytes), values(block_bytes), slot(codec_->slot_bytes());
    const auto fetch = [](const DeviceArray<uint8_t>& from, size_t at, std::vector<std::byte>* to) {
      CheckCuda(cudaMemcpy(to->data(), from.data() + at, to->size(), cudaMemcpyDeviceToHost));
    };
    fetch(keys_, last * block_bytes, &keys);
    fetch(values_, last * block_bytes, &values);
    fetch(slots_, last * slot.size(), &slot);
    std::vector<std::byte> cell(codec_->cell_bytes(0));
    for (uint32_t head = 0; head < kGpuHeads; ++head) {
      SKETCHKV_RETURN_IF_ERROR(codec_->cell(0, head).Encode({keys.data() + head * kRow, kStride},
                                                            {values.data() + head * kRow, kStride},
                                                            block_tokens(), cell));
      if (!std::equal(cell.begin(), cell.end(), slot.begin() + codec_->cell_offset(0, head))) {
        return absl::DataLossError(absl::StrCat("the cell of head ", head, " is not the CPU's"));
      }
    }
    return absl::OkStatus();
  }

  [[nodiscard]] double bytes_per_unit() const override {
    return static_cast<double>(keys_.size() + values_.size()) +
           static_cast<double>(num_cells_) * static_cast<double>(codec_->cell_bytes(0));
  }

 private:
  [[nodiscard]] uint32_t block_tokens() const { return codec_->layout().block_tokens; }
  [[nodiscard]] std::vector<cuda::CellRows> Table() const {
    std::vector<cuda::CellRows> table;
    for (size_t i = 0; i < num_cells_; ++i) {
      const size_t block = i / kGpuHeads, head = i % kGpuHeads;
      const size_t row = block * block_tokens() * kStride + head * kRow;
      table.push_back({keys_.data() + row, values_.data() + row,
                       slots_.data() + block * codec_->slot_bytes() +
                           codec_->cell_offset(0, static_cast<uint32_t>(head)),
                       block_tokens()});
    }
    return table;
  }

  const std::unique_ptr<BlockCodec> codec_;
  const cuda::CodecPlan plan_;
  const uint32_t num_cells_;
  const DeviceArray<uint8_t> keys_, values_;  // [blocks][tokens][kGpuHeads][kDim]
  DeviceArray<uint8_t> slots_;
  const DeviceArray<cuda::CellRows> table_;
  DeviceArray<cuda::EncodeArgs::Checks> checks_;
};

class EncodeBlocks final : public Blocks {
 public:
  using Blocks::Blocks;

 private:
  void Enqueue(cudaStream_t stream) override { Encode(stream); }
};

class DecodeBlocks final : public Blocks {
 public:
  using Blocks::Blocks;

 private:
  void Enqueue(cudaStream_t stream) override { Decode(stream); }
};

template <typename T>
Made Make(const Options& options) {
  SKETCHKV_RETURN_IF_ERROR(DescribeCard().status());
  SKETCHKV_ASSIGN_OR_RETURN(const Numbers numbers, ReadNumbers(options));
  const auto block = static_cast<uint32_t>(options.Number("block", 64));
  SKETCHKV_ASSIGN_OR_RETURN(auto codec, MakeCodec(options, block, kGpuHeads));
  const auto plan = cuda::MakeCodecPlan(codec->layout(), codec->profiles().front());
  if (!plan) return absl::InvalidArgumentError("the tuned kernels do not take this profile");
  const size_t num_blocks = options.Number("sequences", 1) * options.Number("tokens", 8192) / block;
  auto contender = std::make_unique<T>(options, std::move(codec), *plan, num_blocks, numbers);
  SKETCHKV_RETURN_IF_ERROR(contender->EncodeAndCheck());
  return contender;
}

class Copy final : public GpuContender {
 public:
  Copy(const Options& options, const Numbers& numbers)
      : GpuContender(options),
        from_(RowsOnCard(numbers.keys, options.Number("bytes", 2 << 20) / 2)),
        to_(from_.size()) {}
  [[nodiscard]] double bytes_per_unit() const override { return 1; }

 private:
  void Enqueue(cudaStream_t stream) override {
    CheckCuda(
        cudaMemcpyAsync(to_.data(), from_.data(), from_.size(), cudaMemcpyDeviceToDevice, stream));
  }
  [[nodiscard]] double units_per_pass() const override {
    return 2 * static_cast<double>(from_.size());
  }

  const DeviceArray<uint8_t> from_, to_;
};

Made MakeCopy(const Options& options) {
  SKETCHKV_RETURN_IF_ERROR(DescribeCard().status());
  SKETCHKV_ASSIGN_OR_RETURN(const Numbers numbers, ReadNumbers(options));
  return std::make_unique<Copy>(options, numbers);
}

}  // namespace

void AddGpuCodecContenders(Registry* registry) {
  registry->Add("gpu.encode", Make<EncodeBlocks>);
  registry->Add("gpu.decode", Make<DecodeBlocks>);
  registry->Add("gpu.copy", MakeCopy);
}

}  // namespace sketchkv::bench
