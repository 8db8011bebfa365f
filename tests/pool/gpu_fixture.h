#pragma once

#include <optional>
#include <vector>

#include "service/pool/arena_tier.h"
#include "tests/pool/pool_fixture.h"

namespace sketchkv {

inline BlockPool::ReserveRequest GpuRequest(uint64_t number,
                                            std::optional<uint64_t> parent = std::nullopt,
                                            size_t slot_bytes = 4096, uint8_t model = 0) {
  BlockPool::ReserveRequest request = RequestFor(number, parent, slot_bytes, model);
  request.want_gpu = true;
  return request;
}

// FillClaimed on the GPU too; with kStale there alone, and the host's cells are poisoned. There is
// a gpu_slot.
inline std::vector<uint32_t> FillOnGpu(const WriteHandle& handle, const BlockKey& key,
                                       HostBytes host) {
  const std::vector<uint32_t> checksums = FillClaimed(handle, key);
  const size_t cell_bytes = handle.slot().size() / 4;
  for (const WriteHandle::Cell& cell : handle.claimed()) {
    const size_t begin = (cell.layer * 2 + cell.head) * cell_bytes;
    std::memcpy(&handle.gpu_slot()[begin], &handle.slot()[begin], cell_bytes);
    if (host == HostBytes::kStale) std::memset(&handle.slot()[begin], 0x5A, cell_bytes);
  }
  return checksums;
}

inline absl::Status PutStale(BlockPool& pool, const BlockPool::ReserveRequest& request) {
  SKETCHKV_ASSIGN_OR_RETURN(WriteHandle handle, pool.Reserve(request));
  if (handle.gpu_slot().empty()) return absl::ResourceExhaustedError("no gpu_slot");
  const auto checksums = FillOnGpu(handle, request.key, HostBytes::kStale);
  return handle.Commit(checksums, HostBytes::kStale).status();
}

// What the copy holds, in the form that HoldsPattern reads.
inline BlockView CopyOf(const BlockView& view) {
  BlockView copy = view;
  copy.bytes = {view.gpu, view.bytes.size()};
  return copy;
}

// All bytes that count are what was put: those of the copy, and the host's unless they are stale.
inline bool HoldsPatternEverywhere(const BlockView& view) {
  if (view.gpu == nullptr) return !view.host_stale && HoldsPattern(view);
  return HoldsPattern(CopyOf(view)) && (view.host_stale || HoldsPattern(view));
}

inline void WriteBack(BlockPool& pool, const ReadPins& stale) {
  for (size_t i = 0; i < stale.size(); ++i) {
    const std::span<const std::byte> host = stale[i].bytes;
    std::memcpy(const_cast<std::byte*>(host.data()), stale[i].gpu, host.size());
    pool.MarkWritten(stale, i);
  }
}

inline bool FinishPromotion(PromotionHandle handle) {
  std::memcpy(handle.gpu_slot().data(), handle.block().bytes.data(), handle.block().bytes.size());
  return handle.Commit();
}

// Eight slots of 4 KiB on the GPU, one a page, beside 64 in the host tier.
class GpuPoolTest : public PoolTest {
 protected:
  static constexpr size_t kGpuSlots = 8;

  GpuPoolTest() : memory_({kGpuSlots * kSlot}) {
    BlockPool::Options options;
    options.budget_bytes = kBudget;
    options.high_watermark = 1.0;
    pool_ = std::make_unique<BlockPool>(options, &clock_,
                                        std::make_unique<ArenaTier>(memory_.chunks()));
  }
  void PutGpuRoots(uint64_t begin, uint64_t end) {
    for (uint64_t root = begin; root < end; ++root) {
      SKETCHKV_ASSERT_OK(PutRequest(*pool_, GpuRequest(root)));
    }
  }
  void PutGpuChain(uint64_t begin, uint64_t end, std::optional<uint64_t> parent = std::nullopt) {
    for (uint64_t number = begin; number < end; ++number) {
      SKETCHKV_ASSERT_OK(PutRequest(*pool_, GpuRequest(number, parent)));
      parent = number;
    }
  }
  // Which of begin, begin + 1, ..., end - 1 have a copy. Looking is no use.
  [[nodiscard]] std::vector<uint64_t> Copies(uint64_t begin, uint64_t end, uint8_t model = 0) {
    std::vector<uint64_t> copies;
    uint64_t cursor = 0;
    const ReadPins all = pool_->PinNext(&cursor, 1000);
    for (uint64_t number = begin; number < end; ++number) {
      for (size_t i = 0; i < all.size(); ++i) {
        if (*all[i].key == KeyOf(number, model) && all[i].gpu != nullptr) copies.push_back(number);
      }
    }
    return copies;
  }
  // Lets a second go by, as the service does between two calls of Expire.
  void Sleep(int seconds) {
    for (int i = 0; i < seconds; ++i) {
      clock_.Advance(std::chrono::seconds(1));
      pool_->Expire();
    }
  }
  // Copies for these blocks, where there is room. Returns how many.
  size_t Promote(const std::vector<uint64_t>& numbers) {
    std::vector<BlockKey> keys;
    for (const uint64_t number : numbers) keys.push_back(KeyOf(number));
    size_t count = 0;
    for (PromotionHandle& handle : pool_->ReservePromotions(keys)) {
      count += FinishPromotion(std::move(handle));
    }
    return count;
  }
  // Writes back what is stale. Returns how many blocks.
  size_t WriteBackSome(size_t limit = 1000) {
    const ReadPins stale = pool_->PinStale(limit);
    WriteBack(*pool_, stale);
    return stale.size();
  }

  FakeGpuMemory memory_;
};

}  // namespace sketchkv
