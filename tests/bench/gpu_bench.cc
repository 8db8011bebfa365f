// Times the GPU's kernels: medians of CUDA events, over data well past the second cache.
// Usage: sketchkv_bench_gpu [copy | codec | large | one]   Prints a JSON object a line: metric,
// variant, seconds, bytes.
//        sketchkv_bench_gpu serve   The contenders of tests/bench.sh --gpu.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "kernels/cuda/plan.h"
#include "tests/bench/gpu_chain_contenders.h"
#include "tests/bench/gpu_codec_contenders.h"
#include "tests/bench/gpu_contender.h"
#include "tests/gpu/device_array.h"
#include "tests/kernels/codec_testing.h"

namespace sketchkv {
namespace {

using testing::CheckCuda;
using testing::DeviceArray;

constexpr uint32_t kDim = cuda::kDim;
constexpr uint32_t kHeads = 8;

// Median seconds of `run` on `stream`.
double Time(cudaStream_t stream, int repeats, const std::function<void()>& run) {
  cudaEvent_t begin, end;
  CheckCuda(cudaEventCreate(&begin));
  CheckCuda(cudaEventCreate(&end));
  for (int i = 0; i < 3; ++i) run();
  std::vector<double> seconds;
  for (int i = 0; i < repeats; ++i) {
    CheckCuda(cudaEventRecord(begin, stream));
    run();
    CheckCuda(cudaEventRecord(end, stream));
    CheckCuda(cudaEventSynchronize(end));
    float ms = 0;
    CheckCuda(cudaEventElapsedTime(&ms, begin, end));
    seconds.push_back(ms * 1e-3);
  }
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  std::nth_element(seconds.begin(), seconds.begin() + seconds.size() / 2, seconds.end());
  return seconds[seconds.size() / 2];
}

void Print(const char* metric, const std::string& variant, double seconds, double bytes) {
  std::printf("{\"metric\": \"%s\", \"variant\": \"%s\", \"us\": %.3f, \"gb_per_s\": %.1f}\n",
              metric, variant.c_str(), seconds * 1e6, bytes / seconds * 1e-9);
  std::fflush(stdout);
}

// Sequences of equal length whose blocks lie in shuffled slots. Cells are real ones, of random
// rows.
struct Chains {
  Chains(const std::string& profile_name, uint32_t block_tokens, uint32_t num_sequences,
         uint32_t tokens) {
    KvLayout layout = testing::Layout(kDim, kDim, block_tokens);
    layout.num_kv_heads = kHeads;
    const CodecProfile profile = testing::Resolve(testing::Named(profile_name), layout);
    const auto codec = testing::MakeCodec(layout, profile, testing::BestIsa());
    plan = *cuda::MakeCellPlan(layout, profile);
    key_bytes = codec->cell(0, 0).key_bytes() / static_cast<double>(block_tokens);
    cell_bytes = codec->cell_bytes(0);
    slot_bytes = codec->slot_bytes();
    const uint32_t blocks_of_one = tokens / block_tokens;
    const uint32_t num_blocks = blocks_of_one * num_sequences;

    constexpr uint32_t kKinds = 32;
    std::vector<uint8_t> kinds(kKinds * slot_bytes);
    for (uint32_t i = 0; i < kKinds; ++i) {
      for (uint32_t head = 0; head < kHeads; ++head) {
        const auto cell = testing::EncodeCell(
            codec->cell(0, head),
            testing::RandomRows(block_tokens, kDim, DType::kBf16, 64 * i + head),
            testing::RandomRows(block_tokens, kDim, DType::kBf16, 64 * i + 32 + head),
            block_tokens);
        std::copy(cell.begin(), cell.end(),
                  reinterpret_cast<std::byte*>(kinds.data()) + i * slot_bytes +
                      codec->cell_offset(0, head));
      }
    }
    DeviceArray<uint8_t> on_device{std::span<const uint8_t>(kinds)};
    memory = std::make_unique<DeviceArray<uint8_t>>(num_blocks * slot_bytes);
    std::mt19937 random(7);
    std::vector<const uint8_t*> table(num_blocks);
    for (uint32_t i = 0; i < num_blocks; ++i) {
      table[i] = memory->data() + i * slot_bytes;
      CheckCuda(cudaMemcpyAsync(memory->data() + i * slot_bytes,
                                on_device.data() + random() % kKinds * slot_bytes, slot_bytes,
                                cudaMemcpyDeviceToDevice));
    }
    CheckCuda(cudaDeviceSynchronize());
    std::shuffle(table.begin(), table.end(), random);
    slots = std::make_unique<DeviceArray<const uint8_t*>>(std::span<const uint8_t* const>(table));
    for (uint32_t s = 0; s < num_sequences; ++s) ranges.push_back({s * blocks_of_one, 0, tokens});
  }

  cuda::CellPlan plan;
  double key_bytes;  // of a token
  size_t cell_bytes, slot_bytes;
  std::vector<cuda::TokenRange> ranges;
  std::unique_ptr<DeviceArray<uint8_t>> memory;
  std::unique_ptr<DeviceArray<const uint8_t*>> slots;
};

cuda::ThreadBlocks AttendBlocks() {
  cuda::ThreadBlocks blocks{};
  CheckCuda(cuda::AttendBlocks(&blocks));
  return blocks;
}

// One launch over some of the sequences, ready to be repeated.
class Launch {
 public:
  Launch(const Chains& chains, std::span<const cuda::TokenRange> ranges, uint32_t num_queries,
         const cuda::ThreadBlocks& most, size_t score_stride)
      : plan_(chains.plan),
        queries_(std::span<const float>(testing::RandomQueries(
            static_cast<uint32_t>(ranges.size()) * kHeads * num_queries, kDim, 3))),
        partials_((most.narrow + ranges.size() * kHeads) * cuda::kPartialFloats),
        arrivals_(ranges.size() * kHeads),
        out_(queries_.size()),
        lse_(queries_.size() / kDim),
        scores_(score_stride * queries_.size() / kDim) {
    arrivals_.Fill(0);
    cuda::ChainArgs chain{};
    testing::CheckOk(cuda::Schedule(ranges, kHeads, most, &chain));
    chain.slots = chains.slots->data();
    chain.cell_stride = chains.cell_bytes;
    attend_ = {chain,
               queries_.data(),
               num_queries,
               0.0884f,
               0.0f,
               partials_.data(),
               arrivals_.data(),
               out_.data(),
               lse_.data(),
               false};
    score_ = {chain, queries_.data(), num_queries, scores_.data(), score_stride, false};
  }

  void Attend(cudaStream_t stream, bool after_attend = false) const {
    cuda::AttendArgs args = attend_;
    args.after_attend = after_attend;
    CheckCuda(cuda::LaunchAttend(plan_, args, stream));
  }
  void Score(cudaStream_t stream, bool as_halves) const {
    cuda::ScoreArgs args = score_;
    args.as_halves = as_halves;
    CheckCuda(cuda::LaunchScore(plan_, args, stream));
  }

 private:
  cuda::CellPlan plan_;
  DeviceArray<float> queries_, partials_;
  DeviceArray<uint32_t> arrivals_;
  DeviceArray<float> out_, lse_, scores_;
  cuda::AttendArgs attend_;
  cuda::ScoreArgs score_;
};

void TimeCopy(cudaStream_t stream) {
  const size_t bytes = size_t{2} << 30;
  DeviceArray<uint8_t> from(bytes), to(bytes);
  from.Fill(0x5A);
  const double seconds = Time(stream, 21, [&] {
    CheckCuda(cudaMemcpyAsync(to.data(), from.data(), bytes, cudaMemcpyDeviceToDevice, stream));
  });
  Print("copy", "2 GiB", seconds, 2.0 * bytes);
}

void TimeLarge(cudaStream_t stream, uint32_t num_sms) {
  for (const char* profile : {"qjl", "qjl3p"}) {
    for (const uint32_t block_tokens : {16u, 64u}) {
      constexpr uint32_t kSequences = 32, kTokens = 32768;
      const Chains chains(profile, block_tokens, kSequences, kTokens);
      const double tokens = double{kSequences} * kTokens * kHeads;
      const double bytes = tokens * chains.cell_bytes / block_tokens;
      for (const uint32_t num_queries : {4u, 8u}) {
        const std::string variant = std::string(profile) + " " + std::to_string(block_tokens) +
                                    "-token blocks q" + std::to_string(num_queries);
        const Launch attend(chains, chains.ranges, num_queries, AttendBlocks(), 0);
        Print("gpu.attend", variant, Time(stream, 21, [&] { attend.Attend(stream); }), bytes);
        const Launch score(chains, chains.ranges, num_queries, {4 * num_sms}, kTokens);
        for (const bool as_halves : {false, true}) {
          Print("gpu.score", variant + (as_halves ? " halves" : " floats"),
                Time(stream, 21, [&] { score.Score(stream, as_halves); }),
                tokens * chains.key_bytes);
        }
      }
    }
  }
}

// Rows to cells and back: 1,024 blocks of 64 tokens and 8 kv heads, 256 MiB of bf16.
void TimeCodec(cudaStream_t stream) {
  for (const char* name : {"qjl", "qjl3p"}) {
    constexpr uint32_t kBlockTokens = 64, kBlocks = 1024;
    KvLayout layout = testing::Layout(kDim, kDim, kBlockTokens);
    layout.num_kv_heads = kHeads;
    const CodecProfile profile = testing::Resolve(testing::Named(name), layout);
    const auto codec = testing::MakeCodec(layout, profile, testing::BestIsa());
    const cuda::CodecPlan plan = *cuda::MakeCodecPlan(layout, profile);
    // [blocks][keys, values][tokens][heads][kDim], as engines hold them.
    const size_t row = kDim * 2, stride = row * kHeads, part = kBlockTokens * stride;
    std::vector<uint16_t> numbers(kBlocks * 2 * part / 2);
    std::mt19937 random(1);
    std::normal_distribution<float> normal;
    for (size_t i = 0; i < numbers.size(); ++i) {
      if (i >= 1 << 22) {  // enough of them are new
        numbers[i] = numbers[i - (1 << 22)];
        continue;
      }
      const float x = normal(random);
      uint32_t bits;
      std::memcpy(&bits, &x, sizeof(bits));
      numbers[i] = static_cast<uint16_t>(bits >> 16);
    }
    DeviceArray<uint16_t> rows{std::span<const uint16_t>(numbers)};
    DeviceArray<uint8_t> cells(kBlocks * codec->slot_bytes());
    std::vector<cuda::CellRows> table;
    auto* base = reinterpret_cast<uint8_t*>(rows.data());
    for (uint32_t b = 0; b < kBlocks; ++b) {
      for (uint32_t h = 0; h < kHeads; ++h) {
        table.push_back({base + 2 * b * part + h * row, base + (2 * b + 1) * part + h * row,
                         cells.data() + b * codec->slot_bytes() + codec->cell_offset(0, h),
                         kBlockTokens});
      }
    }
    DeviceArray<cuda::CellRows> on_device{std::span<const cuda::CellRows>(table)};
    DeviceArray<cuda::EncodeArgs::Checks> checks(table.size());
    checks.Fill(0);
    const auto num_cells = static_cast<uint32_t>(table.size());
    const double bytes = rows.size() * 2.0 + cells.size();
    Print("gpu.encode", name,
          Time(stream, 21,
               [&] {
                 CheckCuda(cuda::LaunchEncode(plan,
                                              {on_device.data(), num_cells, cuda::RowType::kBf16,
                                               stride, stride, checks.data()},
                                              stream));
               }),
          bytes);
    Print("gpu.decode", name,
          Time(stream, 21,
               [&] {
                 CheckCuda(cuda::LaunchDecode(
                     plan, {on_device.data(), num_cells, cuda::RowType::kBf16, stride, stride},
                     stream));
               }),
          bytes);
  }
}

// One sequence of one layer; layer after layer, so that the second cache does not help.
void TimeOne(cudaStream_t stream) {
  for (const char* profile : {"qjl", "qjl3p"}) {
    for (const uint32_t tokens : {8192u, 32768u, 131072u}) {
      constexpr uint32_t kLayers = 8;
      const Chains chains(profile, 64, kLayers, tokens);
      std::vector<std::unique_ptr<Launch>> launches;
      for (uint32_t i = 0; i < kLayers; ++i) {
        launches.push_back(std::make_unique<Launch>(chains, std::span(chains.ranges).subspan(i, 1),
                                                    4, AttendBlocks(), 0));
      }
      cudaGraph_t graph;
      cudaGraphExec_t instance;
      CheckCuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
      for (const auto& launch : launches) launch->Attend(stream, launch != launches.front());
      CheckCuda(cudaStreamEndCapture(stream, &graph));
      CheckCuda(cudaGraphInstantiate(&instance, graph, 0));
      const double seconds =
          Time(stream, 31, [&] { CheckCuda(cudaGraphLaunch(instance, stream)); }) / kLayers;
      Print("gpu.attend.b1", std::string(profile) + " " + std::to_string(tokens / 1024) + "k",
            seconds, 1.0 * tokens * kHeads * chains.cell_bytes / 64);
      CheckCuda(cudaGraphExecDestroy(instance));
      CheckCuda(cudaGraphDestroy(graph));
    }
  }
}

void ServeContenders() {
  bench::Registry registry;
  registry.AddFact("card", bench::DescribeCard());
  bench::AddGpuChainContenders(&registry);
  bench::AddGpuCodecContenders(&registry);
  bench::Serve(registry);
}

}  // namespace
}  // namespace sketchkv

int main(int argc, char** argv) {
  const std::string only = argc > 1 ? argv[1] : "";
  if (only == "serve") {
    sketchkv::ServeContenders();
    return 0;
  }
  cudaDeviceProp device;
  sketchkv::testing::CheckCuda(cudaGetDeviceProperties(&device, 0));
  std::printf("{\"device\": \"%s\", \"sms\": %d, \"l2\": %d}\n", device.name,
              device.multiProcessorCount, device.l2CacheSize);
  cudaStream_t stream;
  sketchkv::testing::CheckCuda(cudaStreamCreate(&stream));
  if (only.empty() || only == "copy") sketchkv::TimeCopy(stream);
  if (only.empty() || only == "codec") sketchkv::TimeCodec(stream);
  if (only.empty() || only == "large") sketchkv::TimeLarge(stream, device.multiProcessorCount);
  if (only.empty() || only == "one") sketchkv::TimeOne(stream);
  return 0;
}
