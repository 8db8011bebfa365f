#include "service/pool/slab_allocator.h"

#include <gtest/gtest.h>

#include <map>
#include <random>
#include <set>
#include <utility>
#include <vector>

namespace sketchkv {
namespace {

constexpr size_t kMiB = size_t{1} << 20;

TEST(SlabAllocatorTest, PagesAreWholeSlotsAndWasteLessThanFourKiB) {
  const SlabAllocator slabs(size_t{8} << 30);
  for (const size_t slot_bytes : {64ul, 192ul, 4096ul, 5056ul, 335872ul, 3 * kMiB, 3 * kMiB + 64}) {
    const size_t page = slabs.PageBytes(slot_bytes);
    EXPECT_EQ(page % 4096, 0u);
    EXPECT_GE(page, slot_bytes);
    EXPECT_LT(page % slot_bytes, 4096u) << slot_bytes;
    EXPECT_LE(page, std::max(8 * kMiB + 4096, slot_bytes + 4096));
  }
}

TEST(SlabAllocatorTest, PageSizeFollowsTheBudget) {
  EXPECT_EQ(SlabAllocator(64 * kMiB).PageBytes(4096), 2 * kMiB);
  EXPECT_EQ(SlabAllocator(8192 * kMiB).PageBytes(4096), 8 * kMiB);
  EXPECT_EQ(SlabAllocator(size_t{262144} * kMiB).PageBytes(4096), 16 * kMiB);
  EXPECT_EQ(SlabAllocator(kMiB).PageBytes(4096), 32768u);
}

TEST(SlabAllocatorTest, AFreePageServesAnotherClass) {
  SlabAllocator slabs(8192);
  const auto a = slabs.Allocate(4096);
  const auto b = slabs.Allocate(4096);
  ASSERT_TRUE(a.has_value() && b.has_value());
  EXPECT_FALSE(slabs.HasRoom(64));
  EXPECT_FALSE(slabs.Allocate(64).has_value());
  EXPECT_TRUE(slabs.Free(a->id));
  EXPECT_FALSE(slabs.HasRoom(8192));
  const auto c = slabs.Allocate(64);
  ASSERT_TRUE(c.has_value());
  EXPECT_TRUE(c->new_page);
  EXPECT_EQ(slabs.page_bytes(), 8192u);
  EXPECT_EQ(slabs.used_bytes(), 4096u + 64u);
}

// The model: which slots are in use, and the class of each page that has one.
TEST(SlabAllocatorTest, RandomUseAgreesWithAPlainModel) {
  std::mt19937 random(7);
  const size_t budget = 4 * kMiB;
  SlabAllocator slabs(budget);
  const std::vector<size_t> classes = {64, 1088, 4096, 40000 / 64 * 64, 200 * 1024};
  std::map<uint32_t, std::pair<size_t, std::set<uint32_t>>> pages;
  size_t refused = 0;
  for (int step = 0; step < 60000; ++step) {
    const bool grow = step / 10000 % 2 == 0 ? random() % 3 != 0 : random() % 3 == 0;
    if (grow) {
      const size_t slot_bytes = classes[random() % classes.size()];
      const bool room = slabs.HasRoom(slot_bytes);
      const auto got = slabs.Allocate(slot_bytes);
      ASSERT_EQ(got.has_value(), room);
      if (!got.has_value()) {
        ++refused;
        continue;
      }
      ASSERT_EQ(got->new_page, !pages.contains(got->id.page));
      auto& [page_class, slots] = pages[got->id.page];
      if (got->new_page) page_class = slot_bytes;
      ASSERT_EQ(page_class, slot_bytes);
      ASSERT_EQ(slabs.SlotBytes(got->id.page), slot_bytes);
      ASSERT_LE((got->id.slot + 1) * slot_bytes, slabs.PageBytes(slot_bytes));
      ASSERT_TRUE(slots.insert(got->id.slot).second) << "slot given twice";
    } else if (!pages.empty()) {
      auto page = std::next(pages.begin(), random() % pages.size());
      auto& slots = page->second.second;
      const auto slot = std::next(slots.begin(), random() % slots.size());
      const bool last = slots.size() == 1;
      ASSERT_EQ(slabs.Free({page->first, *slot}), last);
      slots.erase(slot);
      if (last) pages.erase(page);
    }
    size_t page_bytes = 0, used_bytes = 0;
    if (step % 50 == 0) {
      for (const auto& [number, page] : pages) {
        page_bytes += slabs.PageBytes(page.first);
        used_bytes += page.first * page.second.size();
      }
      ASSERT_EQ(slabs.page_bytes(), page_bytes);
      ASSERT_EQ(slabs.used_bytes(), used_bytes);
      ASSERT_LE(page_bytes, budget);
    }
  }
  EXPECT_GT(refused, 100u);
}

}  // namespace
}  // namespace sketchkv
