#include "tests/bench/gpu_chains.h"

#include <algorithm>
#include <cmath>
#include <random>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"
#include "tests/bench/cells.h"
#include "tests/bench/data.h"
#include "tests/bench/gpu_contender.h"

namespace sketchkv::bench {
namespace {

using testing::CheckCuda;
using testing::DeviceArray;

// [num_sequences][kGpuHeads][num_queries][kDim]: the run's queries for each pair.
DeviceArray<float> Queries(const std::vector<float>& queries, uint32_t num_queries,
                           size_t num_sequences) {
  const size_t size = size_t{num_queries} * kDim;
  std::vector<float> repeated(num_sequences * kGpuHeads * size);
  for (size_t i = 0; i < repeated.size(); ++i) repeated[i] = queries[i % size];
  return DeviceArray<float>(std::span<const float>(repeated));
}

// Slots one after another, as many as the run's numbers fill.
std::vector<std::byte> DistinctSlots(const BlockCodec& codec, std::span<const std::byte> cells) {
  const size_t bytes = codec.cell_bytes(0);
  const size_t count = cells.size() / bytes / kGpuHeads;
  std::vector<std::byte> slots(count * codec.slot_bytes());
  for (size_t i = 0; i < count * kGpuHeads; ++i) {
    std::copy_n(cells.begin() + i * bytes, bytes,
                slots.begin() + i / kGpuHeads * codec.slot_bytes() +
                    codec.cell_offset(0, static_cast<uint32_t>(i % kGpuHeads)));
  }
  return slots;
}

}  // namespace

absl::StatusOr<std::unique_ptr<GpuChains>> GpuChains::Make(const Options& options) {
  const auto block = static_cast<uint32_t>(options.Number("block", 64));
  const auto num_sequences = static_cast<uint32_t>(options.Number("sequences", 1));
  const auto tokens = static_cast<uint32_t>(options.Number("tokens", 8192));
  if (block == 0 || tokens % block != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("tokens ", tokens, ": not a multiple of block ", block));
  }
  SKETCHKV_ASSIGN_OR_RETURN(const Numbers numbers, ReadNumbers(options));
  SKETCHKV_ASSIGN_OR_RETURN(const auto single, MakeCodec(options, block, 1));
  SKETCHKV_ASSIGN_OR_RETURN(const std::vector<std::byte> cells, EncodeCells(*single, numbers));
  SKETCHKV_ASSIGN_OR_RETURN(const auto codec, MakeCodec(options, block, kGpuHeads));
  const auto plan = cuda::MakeCellPlan(codec->layout(), codec->profiles().front());
  if (!plan) return absl::InvalidArgumentError("the tuned kernels do not take this profile");

  const uint32_t blocks_each = tokens / block;
  const size_t num_blocks = size_t{blocks_each} * num_sequences;
  auto memory = RepeatedOnCard(DistinctSlots(*codec, cells), num_blocks * codec->slot_bytes());
  std::vector<const uint8_t*> table(num_blocks);
  for (size_t i = 0; i < num_blocks; ++i) table[i] = memory.data() + i * codec->slot_bytes();
  std::shuffle(table.begin(), table.end(), std::mt19937_64(1));
  std::vector<cuda::TokenRange> ranges;
  for (uint32_t i = 0; i < num_sequences; ++i) ranges.push_back({i * blocks_each, 0, tokens});

  const CellCodec& cell = codec->cell(0, 0);
  return std::unique_ptr<GpuChains>(
      new GpuChains{.plan = *plan,
                    .key_bytes = static_cast<double>(cell.key_bytes()),
                    .cell_bytes = static_cast<double>(cell.key_bytes() + cell.value_bytes()),
                    .cell_offset = codec->cell_offset(0, 0),
                    .cell_stride = codec->cell_offset(0, 1) - codec->cell_offset(0, 0),
                    .num_cells = static_cast<double>(num_blocks * kGpuHeads),
                    .sequences = std::move(ranges),
                    .memory = std::move(memory),
                    .slots = DeviceArray<const uint8_t*>(std::span<const uint8_t* const>(table))});
}

ChainLaunch::ChainLaunch(const GpuChains& chains, std::span<const cuda::TokenRange> sequences,
                         const std::vector<float>& queries, uint32_t num_queries,
                         const cuda::ThreadBlocks& most, size_t score_stride, bool as_halves)
    : plan_(chains.plan),
      queries_(Queries(queries, num_queries, sequences.size())),
      partials_((most.narrow + sequences.size() * kGpuHeads) * cuda::kPartialFloats),
      arrivals_(sequences.size() * kGpuHeads),
      out_(queries_.size()),
      lse_(queries_.size() / kDim),
      scores_(score_stride * queries_.size() / kDim) {
  arrivals_.Fill(0);
  cuda::ChainArgs chain{};
  testing::CheckOk(cuda::Schedule(sequences, kGpuHeads, most, &chain));
  chain.slots = chains.slots.data();
  chain.cell_offset = chains.cell_offset;
  chain.cell_stride = chains.cell_stride;
  attend_.chain = chain;
  attend_.queries = queries_.data();
  attend_.num_queries = num_queries;
  attend_.softmax_scale = 1 / std::sqrt(static_cast<float>(kDim));
  attend_.partials = partials_.data();
  attend_.arrivals = arrivals_.data();
  attend_.out = out_.data();
  attend_.lse = lse_.data();
  score_ = {chain, queries_.data(), num_queries, scores_.data(), score_stride, as_halves};
}

void ChainLaunch::Attend(cudaStream_t stream, bool begins_early) const {
  cuda::AttendArgs args = attend_;
  args.begins_early = begins_early;
  CheckCuda(cuda::LaunchAttend(plan_, args, stream));
}

void ChainLaunch::Score(cudaStream_t stream) const {
  CheckCuda(cuda::LaunchScore(plan_, score_, stream));
}

}  // namespace sketchkv::bench
