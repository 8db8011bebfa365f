// The pool against a plain map: random operations, and after each what must be true.

#include <algorithm>
#include <array>
#include <map>
#include <random>

#include "tests/pool/pool_fixture.h"

namespace sketchkv {
namespace {

struct ModelBlock {
  std::optional<uint64_t> parent;
  std::array<bool, 4> present{};
  int refs = 0;
  uint64_t last_use = 0;
  TimePoint last_part;
  [[nodiscard]] bool sealed() const { return std::ranges::count(present, true) == 4; }
};
using Name = std::pair<uint8_t, uint64_t>;  // model, number

class PoolModelTest : public PoolTest, public ::testing::WithParamInterface<int> {
 protected:
  static constexpr uint64_t kNumbers = 160;
  struct Writing {
    Name name;
    WriteHandle handle;
    bool deleted = false;
  };
  struct Pinning {
    std::vector<Name> names;
    std::vector<bool> deleted;
    ReadPins pins;
  };

  static std::optional<uint64_t> ParentOf(uint64_t number) {
    return number < 8 ? std::nullopt : std::optional(number - 8 - number % 3);
  }
  static size_t SlotBytes(uint8_t model) { return model == 0 ? 4096 : 2560; }
  // One model alone has one size class, so that the order of eviction is exact.
  [[nodiscard]] int models() const { return GetParam(); }

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
        ASSERT_LE(blocks_.at(name).last_use, block.last_use) << number << " before " << other.second;
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
    auto handle = pool_->Reserve(request);
    std::optional<Name> spared;
    if (parent.has_value()) spared = Name{name.first, *parent};
    ReadEvents(spared);
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
    ModelBlock& block = blocks_[name];
    block.parent = parent;
    block.last_use = ++tick_;
    ++block.refs;
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
      const auto result = w.handle.Commit(FillClaimed(w.handle, key));
      ASSERT_EQ(result.ok(), !w.deleted);
      if (result.ok()) {
        ModelBlock& block = blocks_.at(w.name);
        for (const auto& cell : w.handle.claimed()) block.present[cell.layer * 2 + cell.head] = true;
        if (!w.handle.claimed().empty()) {
          block.last_use = ++tick_;
          block.last_part = clock_.Now();
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
      blocks_.at(pinning.names.front()).last_use = tick_;
    }
    ASSERT_EQ(pinning.pins.size(), pinning.names.size());
    pinning.deleted.assign(pinning.names.size(), false);
    pins_.push_back(std::move(pinning));
    if (pins_.size() > 6) EndPin(random_() % pins_.size());
  }

  void EndPin(size_t i) {
    std::swap(pins_[i], pins_.back());
    for (size_t n = 0; n < pins_.back().names.size(); ++n) {
      const auto [model, number] = pins_.back().names[n];
      ASSERT_EQ(*pins_.back().pins[n].key, KeyOf(number, model));
      ASSERT_TRUE(HoldsPattern(pins_.back().pins[n]));
      if (!pins_.back().deleted[n]) --blocks_.at({model, number}).refs;
    }
    pins_.pop_back();
  }

  void Forget(Name name) {  // of the subtree that was hidden
    for (Writing& w : writing_) w.deleted |= w.name == name;
    for (Pinning& p : pins_) {
      for (size_t n = 0; n < p.names.size(); ++n) {
        if (p.names[n] == name) p.deleted[n] = true;
      }
    }
    blocks_.erase(name);
  }

  void Delete(Name name) {
    std::vector<Name> subtree;
    if (blocks_.contains(name)) subtree.push_back(name);
    for (size_t i = 0; i < subtree.size(); ++i) {
      for (const auto& [other, block] : blocks_) {
        if (other.first == name.first && block.parent == subtree[i].second) subtree.push_back(other);
      }
    }
    const auto count = pool_->Delete(KeyOf(name.second, name.first));
    ASSERT_EQ(count.ok(), !subtree.empty());
    if (!count.ok()) return;
    ASSERT_EQ(*count, subtree.size());
    for (const Name& gone : subtree) Forget(gone);
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
  }

  std::mt19937 random_;
  std::map<Name, ModelBlock> blocks_;
  std::vector<Writing> writing_;
  std::vector<Pinning> pins_;
  uint64_t tick_ = 0, next_event_ = 1, evictions_ = 0, found_ = 0;
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
    } else if (dice < 94) {
      if (!pins_.empty()) EndPin(random_() % pins_.size());
    } else if (dice < 96) {
      Delete(name);
    } else if (dice < 97) {
      Expire();
    }
    CheckAll();
    if (HasFatalFailure()) FAIL() << "at step " << step;
  }
  EXPECT_GT(evictions_, 500u);
  EXPECT_GT(found_, 150u);
  while (!writing_.empty()) EndWriting(0);
  while (!pins_.empty()) EndPin(0);
  EXPECT_EQ(pool_->GetStats().pinned_bytes, 0u);
}

INSTANTIATE_TEST_SUITE_P(OneClassAndTwo, PoolModelTest, ::testing::Values(1, 2));

}  // namespace
}  // namespace sketchkv
