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

// Writes the claimed cells to the slot on the GPU alone; the host slot is poisoned.
inline absl::Status PutStale(BlockPool& pool, const BlockPool::ReserveRequest& request) {
  SKETCHKV_ASSIGN_OR_RETURN(WriteHandle handle, pool.Reserve(request));
  const std::vector<uint32_t> checksums = FillClaimed(handle, request.key);
  if (handle.gpu_slot().empty()) return handle.Commit(checksums).status();
  const size_t cell_bytes = handle.slot().size() / 4;
  for (const WriteHandle::Cell& cell : handle.claimed()) {
    const size_t begin = (cell.layer * 2 + cell.head) * cell_bytes;
    std::memcpy(&handle.gpu_slot()[begin], &handle.slot()[begin], cell_bytes);
    std::memset(&handle.slot()[begin], 0x5A, cell_bytes);
  }
  return handle.Commit(checksums, HostBytes::kStale).status();
}

// What the copy holds, in the form that HoldsPattern reads.
inline BlockView CopyOf(const BlockView& view) {
  BlockView copy = view;
  copy.bytes = {view.gpu, view.bytes.size()};
  return copy;
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
      std::memcpy(handle.gpu_slot().data(), handle.bytes().data(), handle.bytes().size());
      count += handle.Commit();
    }
    return count;
  }
  // Writes back what is stale. Returns how many blocks.
  size_t WriteBack(size_t limit = 1000) {
    const ReadPins stale = pool_->PinStale(limit);
    for (size_t i = 0; i < stale.size(); ++i) {
      std::memcpy(const_cast<std::byte*>(stale[i].bytes.data()), stale[i].gpu, kSlot);
      pool_->MarkWritten(stale, i);
    }
    return stale.size();
  }

  FakeGpuMemory memory_;
};

}  // namespace sketchkv
