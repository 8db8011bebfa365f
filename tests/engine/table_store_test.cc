#include "service/engine/table_store.h"

#include <gtest/gtest.h>

#include <thread>

#include "service/engine/model_registry.h"
#include "tests/testing/engine_fixture.h"

namespace sketchkv {
namespace {

KvLayout SmallLayout() {
  return {.num_layers = 2, .num_kv_heads = 2, .head_dim = 32, .value_dim = 16, .block_tokens = 16};
}

// Of all sets of random tables for SmallLayout.
uint64_t SizeBytes() { return testing::RandomTables(SmallLayout())->size_bytes(); }

Digest128 AddOk(TableStore* store, uint64_t seed, uint32_t tenant = 0) {
  const auto stored = store->Add(tenant, SmallLayout(), RandomHeads(SmallLayout(), 0, seed));
  EXPECT_THAT(stored, IsOk());
  return stored->digest;
}

TEST(TableStoreTest, TheSameNumbersAreTheSameTables) {
  TableStore store;
  const Digest128 first = AddOk(&store, 1);
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const StoredTables found, store.Find(0, first));
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const StoredTables again,
                                store.Add(0, SmallLayout(), RandomHeads(SmallLayout(), 0, 1)));
  EXPECT_EQ(again.digest, first);
  EXPECT_EQ(again.tables, found.tables) << "what is there is kept";
  EXPECT_NE(AddOk(&store, 2), first);
  std::vector<HeadTable> one_bit = RandomHeads(SmallLayout(), 0, 1);
  one_bit[3].value_mean[5] = std::nextafter(one_bit[3].value_mean[5], 2.0f);
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const StoredTables other, store.Add(0, SmallLayout(), one_bit));
  EXPECT_NE(other.digest, first);
  EXPECT_EQ(store.GetStats().count, 3);
  EXPECT_EQ(store.GetStats().size_bytes, 3 * SizeBytes());
}

TEST(TableStoreTest, TenantsDoNotSeeEachOthersTables) {
  TableStore store;
  const Digest128 mine = AddOk(&store, 1, 0);
  EXPECT_THAT(store.Find(7, mine),
              StatusIs(absl::StatusCode::kFailedPrecondition, {ToHex(mine), "upload them first"}));
  EXPECT_EQ(AddOk(&store, 1, 7), mine);
  EXPECT_EQ(store.GetStats().count, 2);
}

TEST(TableStoreTest, TablesThatAreWrongOrTooLargeAreNotKept) {
  TableStore store({.max_upload_bytes = SizeBytes() - 1, .max_unused_bytes = SizeBytes()});
  EXPECT_THAT(store.Add(0, SmallLayout(), RandomHeads(SmallLayout())),
              StatusIs(absl::StatusCode::kResourceExhausted,
                       {std::to_string(SizeBytes()), std::to_string(SizeBytes() - 1)}));
  std::vector<HeadTable> wrong = RandomHeads(SmallLayout());
  wrong[1].key_mean.pop_back();
  EXPECT_THAT(
      store.Add(0, SmallLayout(), wrong),
      StatusIs(absl::StatusCode::kInvalidArgument, {"layer 0 head 1", "key_mean", "31", "32"}));
  EXPECT_EQ(store.GetStats().count, 0);
}

TEST(TableStoreTest, TheLeastRecentlyUsedOfUnusedTablesGo) {
  TableStore store({.max_upload_bytes = SizeBytes(), .max_unused_bytes = 2 * SizeBytes()});
  const Digest128 a = AddOk(&store, 1), b = AddOk(&store, 2);
  SKETCHKV_ASSERT_OK(store.Find(0, a));
  const Digest128 c = AddOk(&store, 3);
  SKETCHKV_EXPECT_OK(store.Find(0, a));
  EXPECT_THAT(store.Find(0, b), StatusIs(absl::StatusCode::kFailedPrecondition));
  SKETCHKV_EXPECT_OK(store.Find(0, c));
}

TEST(TableStoreTest, TablesInUseDoNotCountAndStay) {
  const TableStore::Limits limits{.max_upload_bytes = SizeBytes(), .max_unused_bytes = SizeBytes()};
  ModelRegistry registry(Isa::kScalar, limits);
  LayerProfileRequest klt{.profile = {.name = "klt"}};
  std::vector<Digest128> used;
  for (uint64_t seed = 1; seed <= 3; ++seed) {
    used.push_back(AddOk(&registry.tables(), seed));
    SKETCHKV_ASSERT_OK(
        registry.Register(0, std::to_string(seed), SmallLayout(), {klt}, used.back()));
  }
  AddOk(&registry.tables(), 4);
  AddOk(&registry.tables(), 5);  // and 4 goes
  EXPECT_EQ(registry.tables().GetStats().count, 4);
  for (const Digest128& digest : used) SKETCHKV_EXPECT_OK(registry.tables().Find(0, digest));
  // Unregistered: the first two fall out of use, and only one set may be so.
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const auto held, registry.Remove(0, "1"));
  SKETCHKV_ASSERT_OK(registry.Remove(0, "2"));
  registry.tables().Trim();
  EXPECT_EQ(registry.tables().GetStats().count, 3) << "1 is still held, 2 was used after 5";
  SKETCHKV_EXPECT_OK(registry.tables().Find(0, used[1]));
  EXPECT_EQ(held->codec->tables()->at(1, 1), RandomHeads(SmallLayout(), 0, 1)[3]);
}

TEST(TableStoreTest, ManyThreadsShareIt) {
  const TableStore::Limits limits{.max_upload_bytes = SizeBytes(), .max_unused_bytes = SizeBytes()};
  TableStore store(limits);
  const std::vector<HeadTable> heads[] = {RandomHeads(SmallLayout(), 0, 1),
                                          RandomHeads(SmallLayout(), 0, 2)};
  std::vector<std::thread> threads;
  for (int thread = 0; thread < 4; ++thread) {
    threads.emplace_back([&, thread] {
      for (int i = 0; i < 20; ++i) {
        const auto added = store.Add(0, SmallLayout(), heads[(thread + i) % 2]);
        ASSERT_THAT(added, IsOk());
        // Held here, it stays whatever the others do.
        ASSERT_THAT(store.Find(0, added->digest), IsOk());
        store.Trim();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  store.Trim();
  EXPECT_EQ(store.GetStats().count, 1);
}

}  // namespace
}  // namespace sketchkv
