// The pool against a plain map: random operations, and after each what must be true.

#include <algorithm>
#include <array>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <tuple>

#include "tests/pool/gpu_fixture.h"

namespace sketchkv {
namespace {

struct ModelBlock {
  std::optional<uint64_t> parent;
  std::array<bool, 4> present{};
  int refs = 0;
  uint64_t last_use = 0;
  TimePoint last_use_at, last_part;
  bool copy = false;
  // Unsealed, and copies were dropped when this one could go: no pin shows whether it did.
  bool copy_unknown = false;
  bool stale = false;
  [[nodiscard]] bool sealed() const { return std::ranges::count(present, true) == 4; }
};
using Name = std::pair<uint8_t, uint64_t>;  // model, number

class PoolModelTest : public PoolTest, public ::testing::WithParamInterface<std::tuple<int, bool>> {
 protected:
  static constexpr uint64_t kNumbers = 160;
  static constexpr size_t kGpuSlots = 16;  // of either model: a page each
  // Of a deleted block, as long as a handle or pin keeps it.
  using Kept = std::shared_ptr<int>;
  struct Writing {
    Name name;
    WriteHandle handle;
    bool deleted = false;
    Kept kept = nullptr;
  };
  struct Pinning {
    std::vector<Name> names;
    std::vector<bool> deleted;
    ReadPins pins;
    std::vector<Kept> kept = {};
  };
  struct Promoting {
    Name name;
    PromotionHandle handle;
    bool deleted = false;
    Kept kept = nullptr;
  };

  PoolModelTest() : memory_({6 * kSlot, 10 * kSlot}) {
    if (!with_gpu()) return;
    BlockPool::Options options;
    options.budget_bytes = kBudget;
    options.high_watermark = 1.0;
    pool_ = std::make_unique<BlockPool>(options, &clock_,
                                        std::make_unique<ArenaTier>(memory_.chunks()));
  }

  static std::optional<uint64_t> ParentOf(uint64_t number) {
    return number < 8 ? std::nullopt : std::optional(number - 8 - number % 3);
  }
  static size_t SlotBytes(uint8_t model) { return model == 0 ? 4096 : 2560; }
  // One model alone has one size class, so that the order of eviction is exact.
  [[nodiscard]] int models() const { return std::get<0>(GetParam()); }
  [[nodiscard]] bool with_gpu() const { return std::get<1>(GetParam()); }

  void Use(ModelBlock& block, uint64_t tick) const {
    block.last_use = tick;
    block.last_use_at = clock_.Now();
  }

  [[nodiscard]] bool IsFound(Name name) const {
    const auto it = blocks_.find(name);
    if (it == blocks_.end() || !it->second.sealed()) return false;
    return !it->second.parent.has_value() || IsFound({name.first, *it->second.parent});
  }
  [[nodiscard]] bool IsEvictable(Name name) const {
    if (blocks_.at(name).refs > 0) return false;
    return std::ranges::none_of(blocks_, [&](const auto& other) {
      return other.first.first == name.first && other.second.parent == name.second &&
             other.second.sealed();
    });
  }

  // A copy that is there for sure and may be dropped.
  [[nodiscard]] bool IsDroppable(Name name) const {
    const ModelBlock& block = blocks_.at(name);
    if (!block.copy || block.copy_unknown || block.stale || block.refs > 0) return false;
    return std::ranges::none_of(blocks_, [&](const auto& other) {
      return other.first.first == name.first && other.second.parent == name.second &&
             other.second.copy;
    });
  }

  // What sealed blocks show must be what the model says, but for copies that were dropped: those
  // of blocks that could spare them, the coldest first, none used in the last `idle`.
  void ReadCopies(std::optional<Name> spared, std::chrono::seconds idle = {}) {
    if (!with_gpu()) return;
    const bool dropped_some = pool_->GetStats().demoted_total != demoted_;
    demoted_ = pool_->GetStats().demoted_total;
    std::set<Name> dropped;
    uint64_t cursor = 0;
    const ReadPins all = pool_->PinNext(&cursor, 1000);
    for (size_t i = 0; i < all.size(); ++i) {
      uint64_t number = 0;
      std::memcpy(&number, all[i].key->hash.bytes().data(), sizeof(number));
      const Name name{all[i].key->fingerprint[0], number};
      ModelBlock& block = blocks_.at(name);
      ASSERT_EQ(all[i].host_stale, block.stale);
      if (block.copy_unknown) {
        block.copy = all[i].gpu != nullptr;
        block.copy_unknown = false;
      }
      if (block.copy == (all[i].gpu != nullptr)) continue;
      ASSERT_TRUE(block.copy && dropped_some) << number;
      ASSERT_TRUE(name != spared && block.refs == 0 && !block.stale) << number;
      ASSERT_GE(clock_.Now() - block.last_use_at, idle);
      block.copy = false;
      dropped.insert(name);
    }
    for (auto& [name, block] : blocks_) {
      if (dropped_some && block.copy && !block.sealed() && block.refs == 0 && !block.stale) {
        block.copy_unknown = true;
      }
    }
    for (const Name& gone : dropped) {
      for (const auto& [other, block] : blocks_) {
        const bool child = other.first == gone.first && block.parent == gone.second;
        ASSERT_FALSE(child && block.copy && !block.copy_unknown) << "before its child";
        if (other == spared || !IsDroppable(other)) continue;
        // Its child held it until now.
        if (std::ranges::any_of(dropped, [&](const Name& name) {
              return name.first == other.first && blocks_.at(name).parent == other.second;
            })) {
          continue;
        }
        ASSERT_LE(blocks_.at(gone).last_use, block.last_use) << gone.second;
      }
    }
  }

  void ReadEvents(std::optional<Name> spared) {
    const EventLog::Batch batch = pool_->events().Read(next_event_, 1 << 20);
    ASSERT_EQ(batch.first_missing, 0u);
    next_event_ = batch.next;
    for (const BlockEvent& event : batch.events) {
      if (event.type != BlockEventType::kEvicted) continue;
      ++evictions_;
      uint64_t number = 0;
      std::memcpy(&number, event.key.hash.bytes().data(), sizeof(number));
      const Name name{event.key.fingerprint[0], number};
      ASSERT_TRUE(blocks_.contains(name));
      ASSERT_TRUE(name != spared && IsEvictable(name)) << number;
      for (const auto& [other, block] : blocks_) {
        if (models() > 1 || other == spared || !IsEvictable(other)) continue;
        ASSERT_LE(blocks_.at(name).last_use, block.last_use)
            << number << " before " << other.second;
      }
      blocks_.erase(name);
    }
  }

  void Reserve(Name name) {
    const auto parent = ParentOf(name.second);
    auto request = RequestFor(name.second, parent, SlotBytes(name.first), name.first);
    if (random_() % 2 == 0) {
      request.range = {static_cast<uint32_t>(random_() % 2), 1, 0, 1 + uint32_t(random_() % 2)};
    }
    request.want_gpu = random_() % 3 != 0;
    auto handle = pool_->Reserve(request);
    std::optional<Name> spared;
    if (parent.has_value()) spared = Name{name.first, *parent};
    ReadEvents(spared);
    ReadCopies(spared);
    if (HasFatalFailure()) return;
    if (!handle.ok()) {
      if (handle.status().code() == absl::StatusCode::kAborted) {
        ASSERT_TRUE(std::ranges::any_of(writing_, [&](auto& w) { return w.name == name; }));
      } else {
        ASSERT_EQ(handle.status().code(), absl::StatusCode::kResourceExhausted);
        for (const auto& [other, block] : blocks_) {
          ASSERT_TRUE(models() > 1 || other == spared || !IsEvictable(other));
        }
      }
      return;
    }
    const bool is_new = !blocks_.contains(name);
    ModelBlock& block = blocks_[name];
    block.parent = parent;
    Use(block, ++tick_);
    ++block.refs;
    const bool copy = !handle->gpu_slot().empty();
    if (is_new) {
      ASSERT_TRUE(request.want_gpu || !copy);
      if (with_gpu() && request.want_gpu && !copy) {
        ++fallbacks_;
        ASSERT_EQ(pool_->GetStats().gpu_page_bytes, kGpuSlots * kSlot);
        for (const auto& [other, unused] : blocks_) {
          ASSERT_TRUE(other == spared || other == name || !IsDroppable(other));
        }
      }
    } else {
      ASSERT_TRUE(block.copy == copy || block.copy_unknown);
    }
    block.copy = copy;
    block.copy_unknown = false;
    for (const WriteHandle::Cell& cell : handle->claimed()) {
      ASSERT_FALSE(block.present[cell.layer * 2 + cell.head]);
    }
    writing_.push_back({name, std::move(*handle)});
  }

  void EndWriting(size_t i) {
    std::swap(writing_[i], writing_.back());
    Writing w = std::move(writing_.back());
    writing_.pop_back();
    if (random_() % 4 != 0) {
      const BlockKey key = KeyOf(w.name.second, w.name.first);
      const bool copy = !w.handle.gpu_slot().empty();
      const HostBytes host = copy && random_() % 2 == 0 ? HostBytes::kStale : HostBytes::kWritten;
      const auto checksums = copy ? FillOnGpu(w.handle, key, host) : FillClaimed(w.handle, key);
      const auto result = w.handle.Commit(checksums, host);
      const bool lost = closed_ && host == HostBytes::kStale;
      ASSERT_EQ(result.ok(), !w.deleted && !lost);
      if (result.ok()) {
        ModelBlock& block = blocks_.at(w.name);
        for (const auto& cell : w.handle.claimed())
          block.present[cell.layer * 2 + cell.head] = true;
        if (!w.handle.claimed().empty()) {
          Use(block, ++tick_);
          block.last_part = clock_.Now();
          block.stale |= host == HostBytes::kStale;
        }
        ASSERT_EQ(result->sealed, block.sealed());
      }
    }
    { const WriteHandle ended = std::move(w.handle); }
    if (w.deleted) return;
    ModelBlock& block = blocks_.at(w.name);
    if (--block.refs == 0 && std::ranges::count(block.present, true) == 0) blocks_.erase(w.name);
  }

  void PinChain(Name tip) {
    auto pins = pool_->PinChain(KeyOf(tip.second, tip.first));
    ASSERT_EQ(pins.ok(), IsFound(tip));
    if (!pins.ok()) return;
    Pinning pinning{{}, {}, std::move(*pins)};
    ++tick_;
    for (std::optional<uint64_t> at = tip.second; at.has_value(); at = ParentOf(*at)) {
      pinning.names.insert(pinning.names.begin(), {tip.first, *at});
      ++blocks_.at(pinning.names.front()).refs;
      Use(blocks_.at(pinning.names.front()), tick_);
    }
    ASSERT_EQ(pinning.pins.size(), pinning.names.size());
    pinning.deleted.assign(pinning.names.size(), false);
    pinning.kept.resize(pinning.names.size());
    pins_.push_back(std::move(pinning));
    if (pins_.size() > 6) EndPin(random_() % pins_.size());
  }

  void EndPin(size_t i) {
    std::swap(pins_[i], pins_.back());
    for (size_t n = 0; n < pins_.back().names.size(); ++n) {
      const auto [model, number] = pins_.back().names[n];
      ASSERT_EQ(*pins_.back().pins[n].key, KeyOf(number, model));
      ASSERT_TRUE(HoldsPatternEverywhere(pins_.back().pins[n]));
      if (!pins_.back().deleted[n]) --blocks_.at({model, number}).refs;
    }
    pins_.pop_back();
  }

  void Forget(Name name) {  // of the subtree that was hidden
    const Kept kept = std::make_shared<int>();
    if (blocks_.at(name).copy && blocks_.at(name).refs > 0) kept_copies_.push_back(kept);
    const auto forget = [&](auto& holder) {
      if (holder.name != name || holder.deleted) return;
      holder.deleted = true;
      holder.kept = kept;
    };
    std::ranges::for_each(writing_, forget);
    std::ranges::for_each(promoting_, forget);
    for (Pinning& p : pins_) {
      for (size_t n = 0; n < p.names.size(); ++n) {
        if (p.names[n] != name || p.deleted[n]) continue;
        p.deleted[n] = true;
        p.kept[n] = kept;
      }
    }
    blocks_.erase(name);
  }

  void Delete(Name name) {
    std::vector<Name> subtree;
    if (blocks_.contains(name)) subtree.push_back(name);
    for (size_t i = 0; i < subtree.size(); ++i) {
      for (const auto& [other, block] : blocks_) {
        if (other.first == name.first && block.parent == subtree[i].second)
          subtree.push_back(other);
      }
    }
    const auto count = pool_->Delete(KeyOf(name.second, name.first));
    ASSERT_EQ(count.ok(), !subtree.empty());
    if (!count.ok()) return;
    ASSERT_EQ(*count, subtree.size());
    for (const Name& gone : subtree) Forget(gone);
  }

  void Promote() {
    std::vector<BlockKey> keys;
    for (int i = 0; i < 12; ++i) {
      keys.push_back(KeyOf(random_() % kNumbers / 2, static_cast<uint8_t>(random_() % models())));
    }
    auto handles = pool_->ReservePromotions(keys);
    ReadCopies(std::nullopt, std::chrono::seconds(10));
    for (PromotionHandle& handle : handles) {
      uint64_t number = 0;
      std::memcpy(&number, handle.block().key->hash.bytes().data(), sizeof(number));
      const Name name{handle.block().key->fingerprint[0], number};
      ModelBlock& block = blocks_.at(name);
      ASSERT_TRUE(block.sealed() && !block.copy);
      ASSERT_TRUE(std::ranges::none_of(
          promoting_, [&](const Promoting& p) { return p.name == name && !p.deleted; }));
      ++block.refs;
      promoting_.push_back({name, std::move(handle)});
    }
    while (promoting_.size() > 4) EndPromoting(random_() % promoting_.size());
  }

  void EndPromoting(size_t i) {
    std::swap(promoting_[i], promoting_.back());
    Promoting p = std::move(promoting_.back());
    promoting_.pop_back();
    if (random_() % 4 == 0) {  // given up
      { const PromotionHandle ended = std::move(p.handle); }
      if (!p.deleted) --blocks_.at(p.name).refs;
      return;
    }
    ASSERT_EQ(FinishPromotion(std::move(p.handle)), !p.deleted && !closed_);
    if (p.deleted) return;
    --blocks_.at(p.name).refs;
    if (closed_) return;
    blocks_.at(p.name).copy = true;
    ++promoted_;
  }

  void WriteBackSome() {
    const size_t limit = 1 + random_() % 3;
    const auto stale = std::ranges::count_if(
        blocks_, [](const auto& item) { return item.second.sealed() && item.second.stale; });
    const ReadPins pins = pool_->PinStale(limit);
    ASSERT_EQ(pins.size(), std::min<size_t>(limit, stale));
    for (size_t i = 0; i < pins.size(); ++i) {
      uint64_t number = 0;
      std::memcpy(&number, pins[i].key->hash.bytes().data(), sizeof(number));
      ModelBlock& block = blocks_.at({pins[i].key->fingerprint[0], number});
      ASSERT_TRUE(block.stale && block.sealed() && block.copy);
      block.stale = false;
    }
    WriteBack(*pool_, pins);
  }

  // The card fails.
  void CloseGpu() {
    std::set<Name> lost;
    for (size_t before = 1; before != lost.size();) {
      before = lost.size();
      for (const auto& [name, block] : blocks_) {
        const bool parent_lost = block.parent && lost.contains({name.first, *block.parent});
        if (block.stale || parent_lost) lost.insert(name);
      }
      if (lost.empty()) break;
    }
    ASSERT_EQ(pool_->CloseGpu(), lost.size());
    for (const Name& name : lost) Forget(name);
    for (auto& [name, block] : blocks_) block.copy = block.copy_unknown = false;
    kept_copies_.clear();
    closed_ = true;
  }

  void Expire() {
    clock_.Advance(std::chrono::seconds(random_() % 20));
    pool_->Expire();
    next_event_ = pool_->events().next_sequence();
    std::erase_if(blocks_, [&](const auto& item) {
      return !item.second.sealed() && item.second.refs == 0 &&
             clock_.Now() - item.second.last_part >= std::chrono::seconds(30);
    });
  }

  void CheckAll() {
    uint64_t sealed = 0;
    for (const auto& [name, block] : blocks_) sealed += block.sealed();
    const BlockPool::Stats stats = pool_->GetStats();
    ASSERT_EQ(stats.blocks, blocks_.size());
    ASSERT_EQ(stats.sealed_blocks, sealed);
    ASSERT_LE(stats.page_bytes, kBudget);
    ASSERT_LE(stats.used_bytes, stats.page_bytes);
    if (!with_gpu()) return;
    ReadCopies(std::nullopt);
    if (HasFatalFailure()) return;
    std::erase_if(kept_copies_, [](const std::weak_ptr<int>& kept) { return kept.expired(); });
    uint64_t copies = kept_copies_.size(), unknown = 0, stale = 0;
    for (const auto& [name, block] : blocks_) {
      copies += block.copy && !block.copy_unknown;
      unknown += block.copy_unknown;
      stale += block.stale;
    }
    ASSERT_GE(stats.gpu_blocks, copies);
    ASSERT_LE(stats.gpu_blocks, copies + unknown);
    ASSERT_GE(stats.stale_blocks, stale);
    ASSERT_LE(stats.stale_blocks, stale + kept_copies_.size());
    ASSERT_LE(stats.gpu_used_bytes, stats.gpu_page_bytes);
    ASSERT_EQ(stats.gpu_budget_bytes, closed_ ? 0 : kGpuSlots * kSlot);
    ASSERT_EQ(stats.gpu_fallback_total, fallbacks_);
    ASSERT_EQ(stats.promoted_total, promoted_);
  }

  std::mt19937 random_;
  std::map<Name, ModelBlock> blocks_;
  std::vector<Writing> writing_;
  std::vector<Pinning> pins_;
  uint64_t tick_ = 0, next_event_ = 1, evictions_ = 0, found_ = 0;

  FakeGpuMemory memory_;
  std::vector<Promoting> promoting_;
  std::vector<std::weak_ptr<int>> kept_copies_;
  uint64_t demoted_ = 0, fallbacks_ = 0, promoted_ = 0;
  bool closed_ = false;
};

TEST_P(PoolModelTest, RandomOperationsAgreeWithAPlainMap) {
  for (int step = 0; step < 12000; ++step) {
    // Low numbers, the ancestors, more often, so that chains come to be found.
    const uint64_t number = std::min(random_() % kNumbers, random_() % kNumbers) / (1 + step % 2);
    const Name name{static_cast<uint8_t>(random_() % models()), number};
    const uint32_t dice = random_() % 100;
    if (dice < 50) {
      Reserve(name);
      if (writing_.size() > 4) EndWriting(random_() % writing_.size());
    } else if (dice < 70) {
      if (!writing_.empty()) EndWriting(random_() % writing_.size());
    } else if (dice < 90) {
      found_ += IsFound(name);
      PinChain(name);
    } else if (dice < 93) {
      if (!pins_.empty()) EndPin(random_() % pins_.size());
    } else if (dice < 95) {
      Delete(name);
    } else if (dice < 97) {
      Expire();
    } else if (dice < 99) {
      if (with_gpu()) Promote();
    } else if (with_gpu()) {
      WriteBackSome();
    }
    CheckAll();
    if (HasFatalFailure()) FAIL() << "at step " << step;
  }
  EXPECT_GT(evictions_, 500u);
  EXPECT_GT(found_, 150u);
  if (with_gpu()) {
    EXPECT_GT(promoted_, 20u);
    EXPECT_GT(demoted_, 200u);
    EXPECT_GT(fallbacks_, 200u);
    CloseGpu();
    CheckAll();
  }
  while (!promoting_.empty()) EndPromoting(0);
  while (!writing_.empty()) EndWriting(0);
  while (!pins_.empty()) EndPin(0);
  EXPECT_EQ(pool_->GetStats().pinned_bytes, 0u);
}

INSTANTIATE_TEST_SUITE_P(OneClassAndTwo, PoolModelTest,
                         ::testing::Combine(::testing::Values(1, 2), ::testing::Bool()));

}  // namespace
}  // namespace sketchkv
