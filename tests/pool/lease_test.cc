#include "tests/pool/pool_fixture.h"

namespace sketchkv {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using Code = absl::StatusCode;

using LeaseTest = PoolTest;

TEST_F(LeaseTest, ALeasePinsTheChainUntilItIsReleased) {
  PutChain(0, 10);
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const BlockPool::Lease lease,
                                pool_->AcquireLease(KeyOf(9), seconds(5)));
  EXPECT_EQ(lease.ttl, seconds(5));
  for (uint64_t root = 100; root < 200; ++root) SKETCHKV_ASSERT_OK(Put(*pool_, root, std::nullopt));
  SKETCHKV_ASSERT_OK_AND_ASSIGN(auto chain, pool_->LeasedChain(0, lease.id));
  ASSERT_EQ(chain->size(), 10u);
  for (size_t i = 0; i < 10; ++i) {
    EXPECT_EQ(*(*chain)[i].key, KeyOf(i));
    EXPECT_TRUE(HoldsPattern((*chain)[i]));
  }
  SKETCHKV_ASSERT_OK(pool_->ReleaseLease(0, lease.id));
  EXPECT_EQ(pool_->GetStats().leases, 0u);
  EXPECT_EQ(pool_->GetStats().leased_bytes, 0u);
  EXPECT_EQ(pool_->GetStats().pinned_bytes, 10 * kSlot);  // the pointer lives
  chain.reset();
  EXPECT_EQ(pool_->GetStats().pinned_bytes, 0u);
  EXPECT_THAT(pool_->ReleaseLease(0, lease.id),
              StatusIs(Code::kNotFound, {std::to_string(lease.id)}));
}

TEST_F(LeaseTest, AnEndedLeaseIsGoneAtOnceAndARenewedOneLives) {
  PutChain(0, 2);
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const auto lease, pool_->AcquireLease(KeyOf(1), milliseconds(100)));
  clock_.Advance(milliseconds(99));
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const auto renewed,
                                pool_->RenewLease(0, lease.id, std::chrono::hours(2)));
  EXPECT_EQ(renewed.id, lease.id);
  EXPECT_EQ(renewed.ttl, milliseconds(600000));  // at most max_lease_ttl
  clock_.Advance(milliseconds(599999));
  pool_->Expire();
  SKETCHKV_EXPECT_OK(pool_->LeasedChain(0, lease.id));
  clock_.Advance(milliseconds(1));
  EXPECT_THAT(pool_->LeasedChain(0, lease.id), StatusIs(Code::kNotFound));
  EXPECT_THAT(pool_->RenewLease(0, lease.id, seconds(1)), StatusIs(Code::kNotFound));
  EXPECT_EQ(pool_->GetStats().pinned_bytes, 2 * kSlot);
  pool_->Expire();
  EXPECT_EQ(pool_->GetStats().pinned_bytes, 0u);
  EXPECT_EQ(pool_->GetStats().leases, 0u);
}

TEST_F(LeaseTest, AnotherTenantSeesNoLease) {
  PutChain(0, 2);
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const auto lease, pool_->AcquireLease(KeyOf(1), seconds(1)));
  EXPECT_THAT(pool_->LeasedChain(1, lease.id), StatusIs(Code::kNotFound));
  EXPECT_THAT(pool_->RenewLease(1, lease.id, seconds(1)), StatusIs(Code::kNotFound));
  EXPECT_THAT(pool_->ReleaseLease(1, lease.id), StatusIs(Code::kNotFound));
  SKETCHKV_EXPECT_OK(pool_->LeasedChain(0, lease.id));
}

TEST_F(LeaseTest, LeasesPinAtMostTheirFractionAndCountABlockOnce) {
  PutChain(0, 51);
  SKETCHKV_ASSERT_OK(Put(*pool_, 100, 49));
  const size_t limit = kBudget * 8 / 10;  // 51.2 slots
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const auto lease, pool_->AcquireLease(KeyOf(50), seconds(10)));
  EXPECT_EQ(pool_->GetStats().leased_bytes, 51 * kSlot);
  EXPECT_THAT(pool_->AcquireLease(KeyOf(100), seconds(10)),
              StatusIs(Code::kResourceExhausted,
                       {std::to_string(52 * kSlot), std::to_string(limit)}));
  SKETCHKV_ASSERT_OK(pool_->AcquireLease(KeyOf(30), seconds(20)));
  EXPECT_EQ(pool_->GetStats().leased_bytes, 51 * kSlot);
  SKETCHKV_ASSERT_OK(pool_->ReleaseLease(0, lease.id));
  EXPECT_EQ(pool_->GetStats().leased_bytes, 31 * kSlot);
  SKETCHKV_ASSERT_OK(pool_->AcquireLease(KeyOf(100), seconds(10)));
  EXPECT_EQ(pool_->GetStats().leased_bytes, 51 * kSlot);
  // What has ended makes place without waiting for Expire.
  clock_.Advance(seconds(20));
  SKETCHKV_EXPECT_OK(pool_->AcquireLease(KeyOf(50), seconds(10)));
  EXPECT_EQ(pool_->GetStats().leases, 1u);
}

TEST_F(LeaseTest, ALeaseOutlivesTheDeleteOfItsBlocks) {
  PutChain(0, 3);
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const auto lease, pool_->AcquireLease(KeyOf(2), seconds(10)));
  ASSERT_EQ(pool_->Delete(KeyOf(0)).value(), 3u);
  EXPECT_TRUE(HoldsPattern((*pool_->LeasedChain(0, lease.id).value())[2]));
  EXPECT_EQ(pool_->GetStats().used_bytes, 3 * kSlot);
  SKETCHKV_ASSERT_OK(pool_->ReleaseLease(0, lease.id));
  EXPECT_EQ(pool_->GetStats().used_bytes, 0u);
}

TEST_F(LeaseTest, ALeaseOverDeletedBlocksIsNotRenewed) {
  PutChain(0, 3);
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const auto lease, pool_->AcquireLease(KeyOf(2), seconds(10)));
  SKETCHKV_ASSERT_OK(pool_->Delete(KeyOf(1)));
  EXPECT_THAT(pool_->RenewLease(0, lease.id, seconds(10)), StatusIs(Code::kNotFound));
  SKETCHKV_EXPECT_OK(pool_->LeasedChain(0, lease.id));
}

TEST_F(LeaseTest, ALeaseOverADamagedBlockHasEnded) {
  PutChain(0, 3);
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const auto lease, pool_->AcquireLease(KeyOf(2), seconds(10)));
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const auto above, pool_->AcquireLease(KeyOf(0), seconds(10)));
  pool_->Discard(KeyOf(1));
  EXPECT_THAT(pool_->LeasedChain(0, lease.id), StatusIs(Code::kNotFound));
  EXPECT_THAT(pool_->RenewLease(0, lease.id, seconds(10)), StatusIs(Code::kNotFound));
  SKETCHKV_EXPECT_OK(pool_->LeasedChain(0, above.id));
}

TEST_F(LeaseTest, TheLastUseUnderALeaseCountsWhenItEnds) {
  PutChain(0, 2);
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const auto lease, pool_->AcquireLease(KeyOf(1), seconds(10)));
  for (uint64_t root = 100; root < 162; ++root) SKETCHKV_ASSERT_OK(Put(*pool_, root, std::nullopt));
  SKETCHKV_ASSERT_OK(pool_->LeasedChain(0, lease.id));
  SKETCHKV_ASSERT_OK(pool_->ReleaseLease(0, lease.id));
  for (uint64_t root = 200; root < 262; ++root) SKETCHKV_ASSERT_OK(Put(*pool_, root, std::nullopt));
  EXPECT_TRUE(Found(*pool_, 1));
  EXPECT_FALSE(Found(*pool_, 161));
}

TEST_F(LeaseTest, ATimeToLiveOfNothingIsRefused) {
  PutChain(0, 1);
  EXPECT_THAT(pool_->AcquireLease(KeyOf(0), milliseconds(0)),
              StatusIs(Code::kInvalidArgument, {"ttl", "0 ms"}));
}

}  // namespace
}  // namespace sketchkv
