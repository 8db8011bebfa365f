#include "tests/gpu/gpu_cells.h"

#include <algorithm>

namespace sketchkv::testing {
namespace {

constexpr uint32_t kDim = cuda::kDim;

// Appends tokens of a decoded cell.
void Decoded(const CellCodec& codec, std::span<const std::byte> cell, uint32_t num_tokens,
             Matrix* keys, Matrix* values) {
  std::vector<float> k(size_t{num_tokens} * kDim), v(k.size());
  const size_t stride = kDim * sizeof(float);
  const absl::Status status =
      codec.Decode(cell, num_tokens, DType::kFp32, {reinterpret_cast<std::byte*>(k.data()), stride},
                   DType::kFp32, {reinterpret_cast<std::byte*>(v.data()), stride});
  ASSERT_TRUE(status.ok()) << status;
  for (uint32_t t = 0; t < num_tokens; ++t) {
    keys->emplace_back(k.begin() + t * kDim, k.begin() + (t + 1) * kDim);
    values->emplace_back(v.begin() + t * kDim, v.begin() + (t + 1) * kDim);
  }
}

}  // namespace

GpuChains::GpuChains(const CodecProfile& profile, uint32_t num_kv_heads, uint32_t block_tokens,
                     const std::vector<uint32_t>& tokens, double magnitude)
    : num_kv_heads_(num_kv_heads) {
  KvLayout layout = Layout(kDim, kDim, block_tokens);
  layout.num_kv_heads = num_kv_heads;
  codec_ = MakeCodec(layout, profile, BestIsa());
  plan_ = *cuda::MakeCellPlan(layout, profile);

  uint32_t num_blocks = 0;
  for (const uint32_t n : tokens) num_blocks += (n + block_tokens - 1) / block_tokens;
  // Slots a line apart, so that a read behind one finds garbage.
  const size_t stride = codec_->slot_bytes() + 64;
  std::vector<uint8_t> memory(num_blocks * stride, 0xA5);
  std::vector<uint32_t> order(num_blocks);
  for (uint32_t i = 0; i < num_blocks; ++i) order[i] = i;
  Random random(num_blocks);
  for (uint32_t i = num_blocks; i > 1; --i) std::swap(order[i - 1], order[random.Bits() % i]);

  uint32_t block = 0;
  for (const uint32_t n : tokens) {
    Chain chain{n, block, std::vector<Matrix>(num_kv_heads), std::vector<Matrix>(num_kv_heads)};
    for (uint32_t first = 0; first < n; first += block_tokens, ++block) {
      const uint32_t count = std::min(block_tokens, n - first);
      for (uint32_t head = 0; head < num_kv_heads; ++head) {
        const uint64_t seed = 1000 * block + head;
        const CellCodec& cell = codec_->cell(0, head);
        const auto bytes = EncodeCell(
            cell, RandomRows(block_tokens, kDim, DType::kBf16, seed, 0, magnitude),
            RandomRows(block_tokens, kDim, DType::kBf16, seed + 500, 0, magnitude), count);
        std::memcpy(memory.data() + order[block] * stride + codec_->cell_offset(0, head),
                    bytes.data(), bytes.size());
        Decoded(cell, bytes, count, &chain.keys[head], &chain.values[head]);
      }
    }
    chains_.push_back(std::move(chain));
  }
  memory_ = std::make_unique<DeviceArray<uint8_t>>(std::span<const uint8_t>(memory));
  std::vector<const uint8_t*> slots(num_blocks);
  for (uint32_t i = 0; i < num_blocks; ++i) slots[i] = memory_->data() + order[i] * stride;
  slots_ = std::make_unique<DeviceArray<const uint8_t*>>(std::span<const uint8_t* const>(slots));
}

cuda::ChainArgs GpuChains::Args(uint32_t begin, const cuda::ThreadBlocks& most) const {
  std::vector<cuda::TokenRange> ranges;
  for (const Chain& chain : chains_) {
    ranges.push_back({chain.first_block, std::min(begin, chain.num_tokens), chain.num_tokens});
  }
  cuda::ChainArgs args{};
  CheckOk(cuda::Schedule(ranges, num_kv_heads_, most, &args));
  args.slots = slots_->data();
  args.cell_offset = 0;
  args.cell_stride = codec_->cell_bytes(0);
  return args;
}

}  // namespace sketchkv::testing
