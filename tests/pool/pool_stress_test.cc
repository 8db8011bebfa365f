#include <atomic>
#include <random>
#include <thread>

#include "tests/pool/gpu_fixture.h"

namespace sketchkv {
namespace {

enum class Gpu { kNone, kWorks, kFails };

// Writers, verifying readers, lease holders and deleters on two models whose blocks exceed the
// budget several times; where there is a GPU, one thread promotes and writes back. What it checks:
// no wrong byte in either tier, no overrun of a budget, nothing left.
class PoolStressTest : public PoolTest, public ::testing::WithParamInterface<Gpu> {
 protected:
  static constexpr size_t kGpuBytes = 24 * kSlot;

  PoolStressTest() : memory_({kGpuBytes / 2, kGpuBytes / 2}) {
    if (GetParam() == Gpu::kNone) return;
    BlockPool::Options options;
    options.budget_bytes = kBudget;
    options.high_watermark = 1.0;
    options.gpu_promote_idle = std::chrono::milliseconds(20);
    pool_ = std::make_unique<BlockPool>(options, &clock_,
                                        std::make_unique<ArenaTier>(memory_.chunks()));
  }

  static constexpr uint64_t kChains = 24, kDepth = 4;
  static constexpr int kSteps = 12000;

  static uint64_t Number(uint64_t chain, uint64_t depth) { return chain * kDepth + depth; }

  void PutSome(std::mt19937& random) {
    const uint8_t model = random() % 2;
    const uint64_t depth = random() % kDepth;
    const uint64_t number = Number(random() % kChains, depth);
    auto request = RequestFor(number, depth == 0 ? std::nullopt : std::optional(number - 1),
                              model == 0 ? kSlot : 1280, model);
    if (random() % 4 == 0) request.range = {static_cast<uint32_t>(random() % 2), 1, 0, 2};
    request.want_gpu = random() % 2 == 0;
    auto handle = pool_->Reserve(request);
    if (!handle.ok()) return;
    const bool copy = !handle->gpu_slot().empty();
    const HostBytes host = copy && random() % 2 == 0 ? HostBytes::kStale : HostBytes::kWritten;
    const auto checksums =
        copy ? FillOnGpu(*handle, request.key, host) : FillClaimed(*handle, request.key);
    if (random() % 8 != 0) (void)handle->Commit(checksums, host);
  }

  void ReadSome(std::mt19937& random) {
    const BlockKey tip = KeyOf(Number(random() % kChains, random() % kDepth), random() % 2);
    if (random() % 3 == 0) {
      const auto lease = pool_->AcquireLease(tip, std::chrono::milliseconds(1 + random() % 50));
      if (!lease.ok()) return;
      if (const auto chain = pool_->LeasedChain(0, lease->id); chain.ok()) Verify(**chain);
      if (random() % 2 == 0) (void)pool_->ReleaseLease(0, lease->id);
    } else if (const auto chain = pool_->PinChain(tip); chain.ok()) {
      Verify(*chain);
    }
  }

  void Verify(const ReadPins& pins) {
    for (size_t i = 0; i < pins.size(); ++i) {
      const BlockView view = pins[i];
      if (!HoldsPatternEverywhere(view)) ++wrong_;
      if (view.gpu != nullptr) ++read_on_gpu_;
      ++read_;
    }
  }

  void DropSome(std::mt19937& random) {
    const BlockKey key = KeyOf(Number(random() % kChains, random() % kDepth), random() % 2);
    if (random() % 200 == 0) {
      pool_->Clear(0, key.fingerprint);
    } else if (random() % 16 == 0) {
      (void)pool_->Delete(key);
    }
    clock_.Advance(std::chrono::milliseconds(1));
    pool_->Expire();
    if (pool_->GetStats().page_bytes > kBudget) ++wrong_;
  }

  void MoveSome(std::mt19937& random) {
    WriteBack(*pool_, pool_->PinStale(1 + random() % 8));
    std::vector<BlockKey> keys;
    for (int i = 0; i < 4; ++i) {
      keys.push_back(KeyOf(Number(random() % kChains, random() % kDepth), random() % 2));
    }
    for (PromotionHandle& handle : pool_->ReservePromotions(keys)) {
      if (random() % 8 != 0) (void)FinishPromotion(std::move(handle));
    }
    const BlockPool::Stats stats = pool_->GetStats();
    if (stats.gpu_page_bytes > kGpuBytes || stats.gpu_used_bytes > stats.gpu_page_bytes) ++wrong_;
  }

  FakeGpuMemory memory_;
  std::atomic<uint64_t> wrong_ = 0, read_ = 0, read_on_gpu_ = 0;
};

TEST_P(PoolStressTest, ManyThreadsNeverSeeAWrongByte) {
  constexpr uint32_t kWriters = 3;
  std::atomic<uint32_t> writers_left = kWriters;
  std::atomic<uint64_t> wakes = 0;
  const uint64_t subscription = pool_->events().Subscribe([&] { ++wakes; });
  std::vector<std::thread> threads;
  for (uint32_t id = 0; id < (GetParam() == Gpu::kNone ? 6 : 7); ++id) {
    threads.emplace_back([this, &writers_left, id] {
      std::mt19937 random(1000 + id);
      // Readers and the deleter go on for as long as there are writers: on a busy machine they
      // would be through before the first block is sealed.
      for (int step = 0; step < kSteps || (id >= kWriters && writers_left > 0); ++step) {
        if (id < kWriters) {
          PutSome(random);
        } else if (id < 5) {
          ReadSome(random);
        } else if (id == 6) {
          MoveSome(random);
          if (step == kSteps / 4 && GetParam() == Gpu::kFails) (void)pool_->CloseGpu();
        } else if (step % 8 == 0) {
          DropSome(random);
        }
      }
      if (id < kWriters) --writers_left;
    });
  }
  for (std::thread& thread : threads) thread.join();
  pool_->events().Unsubscribe(subscription);
  EXPECT_EQ(wrong_, 0u);
  EXPECT_GT(read_, 100u);
  if (GetParam() == Gpu::kWorks) {
    EXPECT_GT(read_on_gpu_, 100u);
    EXPECT_GT(pool_->GetStats().promoted_total, 0u);
  }
  EXPECT_EQ(wakes, pool_->events().next_sequence() - 1);

  clock_.Advance(std::chrono::hours(1));
  pool_->Expire();
  for (const uint8_t model : {0, 1}) pool_->Clear(0, KeyOf(0, model).fingerprint);
  const BlockPool::Stats stats = pool_->GetStats();
  EXPECT_EQ(stats.blocks, 0u);
  EXPECT_EQ(stats.sealed_blocks, 0u);
  EXPECT_EQ(stats.leases, 0u);
  EXPECT_EQ(stats.pinned_bytes, 0u);
  EXPECT_EQ(stats.page_bytes, 0u);
  EXPECT_EQ(stats.gpu_page_bytes, 0u);
  EXPECT_EQ(stats.gpu_blocks, 0u);
  EXPECT_EQ(stats.stale_blocks, 0u);
}

INSTANTIATE_TEST_SUITE_P(WithAndWithoutAGpu, PoolStressTest,
                         ::testing::Values(Gpu::kNone, Gpu::kWorks, Gpu::kFails));

}  // namespace
}  // namespace sketchkv
