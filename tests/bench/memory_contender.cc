#include "tests/bench/memory_contender.h"

#include <malloc.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <fstream>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"
#include "kernels/codec.h"
#include "service/pool/block_pool.h"

namespace sketchkv::bench {
namespace {

constexpr uint32_t kTokens = 16;
constexpr uint64_t kChainBlocks = 64;
constexpr KvLayout kTinyLm = {.num_layers = 4,
                              .num_kv_heads = 2,
                              .head_dim = 128,
                              .value_dim = 128,
                              .block_tokens = kTokens,
                              .key_dtype = DType::kFp32,
                              .value_dtype = DType::kFp32};

double ResidentBytes() {
  std::ifstream statm("/proc/self/statm");
  uint64_t all = 0, resident = 0;
  statm >> all >> resident;
  return static_cast<double>(resident) * static_cast<double>(sysconf(_SC_PAGESIZE));
}

// That the system can give without swapping; 0 when it does not say.
uint64_t AvailableBytes() {
  std::ifstream meminfo("/proc/meminfo");
  for (std::string line; std::getline(meminfo, line);) {
    uint64_t kib = 0;
    if (std::sscanf(line.c_str(), "MemAvailable: %lu kB", &kib) == 1) return kib * 1024;
  }
  return 0;
}

BlockHash Hash(uint64_t number) {
  uint8_t bytes[32] = {};
  std::memcpy(bytes, &number, sizeof(number));
  return *BlockHash::FromBytes(bytes);
}

class PoolMemory final : public Contender {
 public:
  PoolMemory(uint64_t blocks, size_t slot_bytes) : blocks_(blocks), slot_bytes_(slot_bytes) {}

  absl::StatusOr<Repetition> Run() override {
    malloc_trim(0);
    const double before = ResidentBytes();
    const SteadyClock clock;
    BlockPool::Options options;
    options.budget_bytes = blocks_ * slot_bytes_ * 11 / 10 + (size_t{64} << 20);
    options.event_capacity = 0;  // what watchers may still read is no block's overhead
    BlockPool pool(options, &clock);
    for (uint64_t number = 0; number < blocks_; ++number) {
      SKETCHKV_RETURN_IF_ERROR(Put(&pool, number));
    }
    if (pool.GetStats().sealed_blocks != blocks_) {
      return absl::InternalError(absl::StrCat("the pool holds ", pool.GetStats().sealed_blocks,
                                              " blocks, want ", blocks_));
    }
    const double exact = static_cast<double>(blocks_ * slot_bytes_);
    return Repetition{ResidentBytes() - before - exact, static_cast<double>(blocks_)};
  }

  [[nodiscard]] double bytes_per_unit() const override { return static_cast<double>(slot_bytes_); }

 private:
  absl::Status Put(BlockPool* pool, uint64_t number) const {
    BlockPool::ReserveRequest request;
    request.key.hash = Hash(number + 1);
    if (number % kChainBlocks != 0) request.parent = Hash(number);
    request.num_tokens = kTokens;
    request.shape = {kTinyLm.num_layers, kTinyLm.num_kv_heads, kTokens, slot_bytes_};
    request.range = {0, kTinyLm.num_layers, 0, kTinyLm.num_kv_heads};
    SKETCHKV_ASSIGN_OR_RETURN(WriteHandle handle, pool->Reserve(request));
    // As encoding would: every page of the slot is touched.
    std::memset(handle.slot().data(), static_cast<int>(number % 255 + 1), slot_bytes_);
    const std::vector<uint32_t> checksums(handle.claimed().size());
    return handle.Commit(checksums).status();
  }

  const uint64_t blocks_;
  const size_t slot_bytes_;
};

Made Make(const Options& options) {
  SKETCHKV_ASSIGN_OR_RETURN(const CodecProfile profile, ResolveProfile({}, kTinyLm, 0));
  SKETCHKV_ASSIGN_OR_RETURN(
      const auto codec,
      BlockCodec::Create(kTinyLm, std::vector<CodecProfile>(kTinyLm.num_layers, profile),
                         Isa::kScalar));
  const uint64_t blocks = options.Number("blocks", 1000000);
  const uint64_t needed = blocks * codec->slot_bytes() * 11 / 10;
  if (AvailableBytes() < needed) {
    return absl::UnavailableError(absl::StrCat(blocks, " blocks need ", needed >> 20,
                                               " MiB of memory, there are ",
                                               AvailableBytes() >> 20));
  }
  return std::make_unique<PoolMemory>(blocks, codec->slot_bytes());
}

}  // namespace

void AddMemoryContender(Registry* registry) { registry->Add("pool.memory", Make); }

}  // namespace sketchkv::bench
