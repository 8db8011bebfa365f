#include "service/pool/event_log.h"

#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include "tests/pool/pool_fixture.h"

namespace sketchkv {
namespace {

void AppendMany(EventLog& log, int count) {
  for (int i = 0; i < count; ++i) log.Append(BlockEventType::kStored, KeyOf(i), std::nullopt);
}

TEST(EventLogTest, ReadsInOrderAndInPieces) {
  EventLog log(100);
  AppendMany(log, 5);
  const EventLog::Batch first = log.Read(1, 3);
  ASSERT_EQ(first.events.size(), 3u);
  EXPECT_EQ(first.first_missing, 0u);
  EXPECT_EQ(first.next, 4u);
  const EventLog::Batch rest = log.Read(first.next, 100);
  ASSERT_EQ(rest.events.size(), 2u);
  EXPECT_EQ(rest.events[0].sequence, 4u);
  EXPECT_EQ(rest.events[1].key, KeyOf(4));
  EXPECT_EQ(rest.next, log.next_sequence());
  EXPECT_TRUE(log.Read(rest.next, 100).events.empty());
}

TEST(EventLogTest, ASlowReaderLearnsWhatItMissed) {
  EventLog log(4);
  AppendMany(log, 10);
  const EventLog::Batch batch = log.Read(3, 100);
  EXPECT_EQ(batch.first_missing, 3u);
  ASSERT_EQ(batch.events.size(), 4u);
  EXPECT_EQ(batch.events.front().sequence, 7u);
  EXPECT_EQ(batch.next, 11u);
  EXPECT_EQ(log.Read(7, 100).first_missing, 0u);
}

TEST(EventLogTest, WakesSubscribersUntilTheyLeave) {
  EventLog log(4);
  int woken = 0;
  const uint64_t id = log.Subscribe([&] { woken += static_cast<int>(log.next_sequence()); });
  AppendMany(log, 1);
  EXPECT_EQ(woken, 2);  // the event can be read in the callback
  log.Unsubscribe(id);
  AppendMany(log, 1);
  EXPECT_EQ(woken, 2);
}

TEST(EventLogTest, UnsubscribeWaitsForARunningWake) {
  EventLog log(4);
  std::atomic<bool> in_wake = false, may_return = false, unsubscribed = false;
  const uint64_t id = log.Subscribe([&] {
    in_wake = true;
    while (!may_return) std::this_thread::yield();
    EXPECT_FALSE(unsubscribed);
  });
  std::thread appender([&] { AppendMany(log, 1); });
  while (!in_wake) std::this_thread::yield();
  std::thread leaver([&] {
    log.Unsubscribe(id);
    unsubscribed = true;
  });
  may_return = true;
  leaver.join();
  appender.join();
  EXPECT_TRUE(unsubscribed);
}

}  // namespace
}  // namespace sketchkv
