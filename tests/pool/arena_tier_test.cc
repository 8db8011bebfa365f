#include "service/pool/arena_tier.h"

#include <random>

#include "tests/pool/pool_fixture.h"

namespace sketchkv {
namespace {

using Code = absl::StatusCode;

constexpr size_t kKiB = 1024;

TEST(ArenaTierTest, SlotsLieInTheChunksAndNoByteIsTouched) {
  const FakeGpuMemory memory({64 * kKiB, 64 * kKiB});
  ArenaTier tier(memory.chunks());
  EXPECT_EQ(tier.GetStats().budget_bytes, 128 * kKiB);
  std::vector<SlotId> slots;
  while (tier.HasRoom(4096)) slots.push_back(tier.Allocate(4096).value());
  EXPECT_EQ(slots.size(), 32u);
  EXPECT_EQ(tier.GetStats().used_bytes, 128 * kKiB);
  for (const SlotId slot : slots) {
    ASSERT_EQ(tier.View(slot).size(), 4096u);
    ASSERT_TRUE(memory.Contains(tier.View(slot).data()));
    tier.Free(slot);
  }
  EXPECT_EQ(tier.GetStats().page_bytes, 0u);
  for (const auto chunk : memory.chunks()) {
    for (const std::byte byte : chunk) ASSERT_EQ(byte, FakeGpuMemory::kPoison);
  }
}

TEST(ArenaTierTest, APageLiesInOneChunk) {
  const FakeGpuMemory memory({12 * kKiB, 12 * kKiB});
  ArenaTier tier(memory.chunks());
  EXPECT_TRUE(tier.CanHold(12 * kKiB));
  EXPECT_FALSE(tier.CanHold(16 * kKiB));
  EXPECT_FALSE(tier.HasRoom(16 * kKiB));
  EXPECT_FALSE(tier.CanHold(size_t{0} - 64));
  const SlotId a = tier.Allocate(8 * kKiB).value();
  const SlotId b = tier.Allocate(8 * kKiB).value();
  EXPECT_EQ(tier.GetStats().budget_bytes - tier.GetStats().page_bytes, 8 * kKiB);
  EXPECT_FALSE(tier.HasRoom(8 * kKiB));
  EXPECT_THAT(tier.Allocate(8 * kKiB), StatusIs(Code::kResourceExhausted, {"8192", "16384"}));
  EXPECT_NE(tier.View(a).data(), tier.View(b).data());
  tier.Free(a);
  EXPECT_TRUE(tier.HasRoom(12 * kKiB));
}

TEST(ArenaTierTest, AMisalignedChunkGivesItsAlignedPart) {
  const FakeGpuMemory memory({16 * kKiB, 4 * kKiB});
  ArenaTier tier({memory.chunks()[0].subspan(64), memory.chunks()[1].subspan(64), {}});
  EXPECT_EQ(tier.GetStats().budget_bytes, 12 * kKiB);
  const SlotId slot = tier.Allocate(64).value();
  EXPECT_EQ(tier.View(slot).data(), memory.chunks()[0].data() + 4 * kKiB);
}

// The model: which addresses are in use, and that a page of the class fits between them.
TEST(ArenaTierTest, RandomUseAgreesWithAPlainModel) {
  std::mt19937 random(11);
  const FakeGpuMemory memory({256 * kKiB, 96 * kKiB, 160 * kKiB});
  ArenaTier tier(memory.chunks());
  const std::vector<size_t> classes = {64, 1088, 4096, 24 * kKiB, 100 * kKiB};
  std::map<std::byte*, std::pair<SlotId, size_t>> in_use;
  size_t refused = 0, fragmented = 0, used_bytes = 0;
  for (int step = 0; step < 40000; ++step) {
    const bool grow = step / 5000 % 2 == 0 ? random() % 3 != 0 : random() % 3 == 0;
    if (grow) {
      const size_t slot_bytes = classes[random() % classes.size()];
      const bool room = tier.HasRoom(slot_bytes);
      const auto id = tier.Allocate(slot_bytes);
      ASSERT_EQ(id.ok(), room);
      if (!room) {
        const Tier::Stats stats = tier.GetStats();
        fragmented += tier.PageBytes(slot_bytes) <= stats.budget_bytes - stats.page_bytes;
        ++refused;
        continue;
      }
      const std::span<std::byte> bytes = tier.View(*id);
      ASSERT_EQ(bytes.size(), slot_bytes);
      ASSERT_EQ(reinterpret_cast<uintptr_t>(bytes.data()) % 64, 0u);
      ASSERT_TRUE(std::ranges::any_of(memory.chunks(), [&](const auto chunk) {
        return bytes.data() >= chunk.data() && &bytes.back() <= &chunk.back();
      }));
      const auto after = in_use.lower_bound(bytes.data());
      ASSERT_TRUE(after == in_use.end() || bytes.data() + slot_bytes <= after->first);
      if (after != in_use.begin()) {
        const auto before = std::prev(after);
        ASSERT_LE(before->first + before->second.second, bytes.data());
      }
      in_use.emplace(bytes.data(), std::pair(*id, slot_bytes));
      used_bytes += slot_bytes;
    } else if (!in_use.empty()) {
      const auto gone = std::next(in_use.begin(), random() % in_use.size());
      ASSERT_EQ(tier.View(gone->second.first).data(), gone->first);
      tier.Free(gone->second.first);
      used_bytes -= gone->second.second;
      in_use.erase(gone);
    }
    ASSERT_EQ(tier.GetStats().used_bytes, used_bytes);
    ASSERT_LE(tier.GetStats().page_bytes, tier.GetStats().budget_bytes);
  }
  EXPECT_GT(refused, 100u);
  EXPECT_GT(fragmented, 10u);
  for (const auto& [address, slot] : in_use) tier.Free(slot.first);
  // All ranges have come together again.
  EXPECT_TRUE(tier.HasRoom(256 * kKiB));
  EXPECT_TRUE(tier.HasRoom(160 * kKiB));
}

}  // namespace
}  // namespace sketchkv
