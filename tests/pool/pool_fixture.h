#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "kernels/base/status_macros.h"
#include "service/pool/block_pool.h"
#include "tests/testing/fake_clock.h"
#include "tests/testing/status_matchers.h"

namespace sketchkv {

constexpr uint32_t kBlockTokens = 16;

inline BlockHash HashOf(uint64_t number) {
  std::array<uint8_t, 16> bytes{};
  std::memcpy(bytes.data(), &number, sizeof(number));
  return BlockHash::FromBytes(bytes).value();
}

// Model 0, 1, ... is a fingerprint.
inline BlockKey KeyOf(uint64_t number, uint8_t model = 0) {
  BlockKey key;
  key.fingerprint[0] = model;
  key.hash = HashOf(number);
  return key;
}

// Two layers, two heads: four cells that divide the slot evenly.
inline BlockShape ShapeOf(size_t slot_bytes) { return {2, 2, kBlockTokens, slot_bytes}; }

inline BlockPool::ReserveRequest RequestFor(uint64_t number, std::optional<uint64_t> parent,
                                            size_t slot_bytes = 4096, uint8_t model = 0) {
  BlockPool::ReserveRequest request;
  request.key = KeyOf(number, model);
  if (parent.has_value()) request.parent = HashOf(*parent);
  request.num_tokens = kBlockTokens;
  request.shape = ShapeOf(slot_bytes);
  request.range = {0, 2, 0, 2};
  return request;
}

// What stands in every byte pair of a cell, and is its checksum: of the key and cell alone.
inline uint32_t PatternOf(const BlockKey& key, size_t cell) {
  uint64_t number = 0;
  std::memcpy(&number, key.hash.bytes().data(), sizeof(number));
  return static_cast<uint32_t>((number * 31 + key.fingerprint[0]) * 4 + cell + 1) * 2654435761u;
}

inline std::vector<uint32_t> FillClaimed(const WriteHandle& handle, const BlockKey& key) {
  const size_t cell_bytes = handle.slot().size() / 4;
  std::vector<uint32_t> checksums;
  for (const WriteHandle::Cell& cell : handle.claimed()) {
    const size_t number = cell.layer * 2 + cell.head;
    const uint32_t pattern = PatternOf(key, number);
    std::byte* const bytes = handle.slot().data() + number * cell_bytes;
    for (size_t i = 0; i < cell_bytes; i += 4) std::memcpy(bytes + i, &pattern, 4);
    checksums.push_back(pattern);
  }
  return checksums;
}

// Every byte and checksum of the block is what FillClaimed wrote for its key.
inline bool HoldsPattern(const BlockView& view) {
  const size_t cell_bytes = view.bytes.size() / 4;
  if (view.cell_checksums.size() != 4) return false;
  for (size_t cell = 0; cell < 4; ++cell) {
    const uint32_t pattern = PatternOf(*view.key, cell);
    if (view.cell_checksums[cell] != pattern) return false;
    for (size_t i = 0; i < cell_bytes; i += 4) {
      if (std::memcmp(view.bytes.data() + cell * cell_bytes + i, &pattern, 4) != 0) return false;
    }
  }
  return true;
}

inline absl::Status PutRequest(BlockPool& pool, const BlockPool::ReserveRequest& request) {
  SKETCHKV_ASSIGN_OR_RETURN(WriteHandle handle, pool.Reserve(request));
  return handle.Commit(FillClaimed(handle, request.key)).status();
}

inline absl::Status Put(BlockPool& pool, uint64_t number, std::optional<uint64_t> parent,
                        size_t slot_bytes = 4096, uint8_t model = 0) {
  return PutRequest(pool, RequestFor(number, parent, slot_bytes, model));
}

inline bool Found(BlockPool& pool, uint64_t number, uint8_t model = 0) {
  return pool.Pin(KeyOf(number, model)).ok();
}

// Memory that stands for a GPU's: poisoned, so that bytes nobody wrote are seen. The pool is given
// addresses and must not touch them.
class FakeGpuMemory {
 public:
  static constexpr std::byte kPoison{0xA5};

  explicit FakeGpuMemory(const std::vector<size_t>& chunk_bytes) {
    for (const size_t bytes : chunk_bytes) {
      auto* const chunk = static_cast<std::byte*>(std::aligned_alloc(4096, bytes));
      std::memset(chunk, static_cast<int>(kPoison), bytes);
      chunks_.emplace_back(chunk, bytes);
    }
  }
  ~FakeGpuMemory() {
    for (const auto chunk : chunks_) std::free(chunk.data());
  }
  FakeGpuMemory(const FakeGpuMemory&) = delete;
  FakeGpuMemory& operator=(const FakeGpuMemory&) = delete;

  [[nodiscard]] const std::vector<std::span<std::byte>>& chunks() const { return chunks_; }
  [[nodiscard]] bool Contains(const std::byte* at) const {
    return std::ranges::any_of(chunks_, [at](const std::span<std::byte> chunk) {
      return at >= chunk.data() && at < chunk.data() + chunk.size();
    });
  }

 private:
  std::vector<std::span<std::byte>> chunks_;
};

// A pool of 64 slots of 4 KiB, two a page.
class PoolTest : public ::testing::Test {
 protected:
  static constexpr size_t kSlot = 4096;
  static constexpr size_t kBudget = 64 * kSlot;

  explicit PoolTest(size_t budget = kBudget) {
    BlockPool::Options options;
    options.budget_bytes = budget;
    options.high_watermark = 1.0;  // eviction on demand only, so that tests see who goes when
    pool_ = std::make_unique<BlockPool>(options, &clock_);
  }
  // Puts begin, begin + 1, ..., end - 1, each the child of the one before, the first of `parent`.
  void PutChain(uint64_t begin, uint64_t end, std::optional<uint64_t> parent = std::nullopt,
                size_t slot_bytes = kSlot, uint8_t model = 0) {
    for (uint64_t number = begin; number < end; ++number) {
      SKETCHKV_ASSERT_OK(Put(*pool_, number, parent, slot_bytes, model));
      parent = number;
    }
  }
  [[nodiscard]] std::vector<std::pair<BlockEventType, BlockHash>> EventsFrom(uint64_t from) {
    std::vector<std::pair<BlockEventType, BlockHash>> events;
    for (const BlockEvent& event : pool_->events().Read(from, 1 << 20).events) {
      events.emplace_back(event.type, event.key.hash);
    }
    return events;
  }

  FakeClock clock_;
  std::unique_ptr<BlockPool> pool_;
};

}  // namespace sketchkv
