// Several puts in one message, from a worker's memory on the card and without the SDK.

#include <map>
#include <thread>

#include "tests/rpc/gpu_memory_fixture.h"

namespace sketchkv {
namespace {

// All answers by their items, each of which has one.
std::map<uint64_t, v1::PutResponse> Flatten(const std::vector<v1::PutResponse>& messages) {
  std::map<uint64_t, v1::PutResponse> by_id;
  const auto add = [&](const v1::PutResponse& answer) {
    EXPECT_TRUE(by_id.emplace(answer.request_id(), answer).second) << answer.request_id();
  };
  for (const v1::PutResponse& message : messages) {
    add(message);
    for (const v1::PutResponse& answer : message.more()) {
      add(answer);
      EXPECT_EQ(answer.more_size(), 0);
    }
  }
  return by_id;
}

// Eight items in a message, some of them bad, and one behind it.
TEST(PutTogetherRpcTest, ItemsOfOneMessageAreAnsweredAsIfTheyCameAlone) {
  GpuFixture f;
  const auto model = f.Register("m", "qjl");
  const RawPart part = RandomPart(*model, {}, 16, 1);
  v1::PutRequest message = f.PutAs(1, part);
  for (uint64_t i = 2; i <= 8; ++i) *message.add_more() = f.PutAs(i, part);
  message.mutable_more(1)->mutable_header()->set_model("nobody");
  message.mutable_more(2)->set_payload("bytes");
  message.mutable_more(3)->mutable_header()->clear_gpu_memory();
  message.mutable_more(4)->mutable_header()->mutable_gpu_memory()->set_length(4);
  message.mutable_more(5)->mutable_header()->set_block_hash(HashBytes(1));
  std::map<uint64_t, v1::PutResponse> by_id = Flatten(f.Put({message, f.PutAs(9, part)}));
  ASSERT_EQ(by_id.size(), 9);
  for (const uint64_t id : {1, 2, 7, 8, 9}) {
    ExpectItem(by_id[id].status(), Code::OK, {});
    EXPECT_TRUE(by_id[id].sealed()) << id;
  }
  EXPECT_NE(by_id[1].already_present(), by_id[7].already_present()) << "of one block";
  ExpectItem(by_id[3].status(), Code::NOT_FOUND, {"nobody"});
  ExpectItem(by_id[4].status(), Code::INVALID_ARGUMENT, {"payload has 5", "more"});
  ExpectItem(by_id[5].status(), Code::INVALID_ARGUMENT, {"segment", "gpu_memory", "more"});
  ExpectItem(by_id[6].status(), Code::INVALID_ARGUMENT, {"gpu_memory.length is 4"});
  EXPECT_EQ(f.pool.GetStats().blocks, 4);
}

TEST(PutTogetherRpcTest, ItemsOfOneMessageMayFollowTheEndOfALargeOne) {
  GpuFixture f;
  const auto model = f.Register("m", "qjl");
  const RawPart part = RandomPart(*model, {}, 16, 1);
  auto messages = RpcFixture::PutMessages(1, "m", 1, 0, part, 32 * 4 * 10);
  *messages.back().add_more() = f.PutAs(2, part);
  ASSERT_GT(messages.size(), 1);
  auto by_id = Flatten(f.Put(messages));
  ExpectItem(by_id[1].status(), Code::OK, {});
  ExpectItem(by_id[2].status(), Code::OK, {});
  // Where that one is not complete it is over, as with a message of the next.
  *messages.front().add_more() = f.PutAs(3, part);
  messages.resize(1);
  messages[0].mutable_header()->set_block_hash(HashBytes(4));
  by_id = Flatten(f.Put(messages));
  ExpectItem(by_id[1].status(), Code::INVALID_ARGUMENT,
             {"payload has", std::to_string(part.payload.size())});
  ExpectItem(by_id[3].status(), Code::OK, {});
}

TEST(PutTogetherRpcTest, MessagesWhoseFurtherItemsAreNoneEndTheStream) {
  GpuFixture f;
  const auto model = f.Register("m", "qjl");
  const RawPart part = RandomPart(*model, {}, 16, 1);
  const auto refuse = [&](const v1::PutRequest& message, size_t answered,
                          const std::vector<std::string>& parts) {
    grpc::Status status;
    EXPECT_EQ(Flatten(f.Put({message, f.PutAs(99, part)}, &status)).size(), answered);
    ExpectCall(status, Code::INVALID_ARGUMENT, parts);
  };
  v1::PutRequest message = f.PutAs(1, part);
  *message.add_more() = f.PutAs(2, part);
  *message.add_more() = f.PutAs(3, part);
  *message.mutable_more(1)->add_more() = f.PutAs(4, part);
  refuse(message, 0, {"more[1].more has 1"});
  message.mutable_more(1)->clear_more();
  message.mutable_more(1)->clear_header();
  refuse(message, 2, {"without a header", "3"});
  *message.mutable_more(1) = f.PutAs(0, part);
  refuse(message, 2, {"request_id is 0"});
  message.clear_more();
  for (uint64_t id = 2; id <= 65; ++id) *message.add_more() = f.PutAs(id, part);
  refuse(message, 0, {"more has 64", "63"});
  message.mutable_more()->RemoveLast();
  EXPECT_EQ(Flatten(f.Put({message})).size(), 64);
}

TEST(PutTogetherRpcTest, ARequestIdTwiceInAMessageEndsTheStreamBehindTheFirst) {
  GpuFixture f;
  const auto model = f.Register("m", "qjl");
  const RawPart part = RandomPart(*model, {}, 16, 1);
  v1::PutRequest message = f.PutAs(1, part);
  *message.add_more() = f.PutAs(2, part);
  *message.add_more() = f.PutAs(1, part);
  *message.add_more() = f.PutAs(3, part);
  grpc::Status status;
  const auto by_id = Flatten(f.Put({message}, &status));
  ExpectCall(status, Code::INVALID_ARGUMENT, {"request_id 1"});
  EXPECT_EQ(by_id.size(), 2);
  EXPECT_EQ(by_id.count(3), 0);
}

TEST(PutTogetherRpcTest, ItemsOfOneMessageHaveTimesOfTheirOwn) {
  GpuFixture f;
  const auto model = f.Register("m", "qjl");
  const RawPart part = RandomPart(*model, {}, 16, 1);
  f.gpu.on_encode = [] { std::this_thread::sleep_for(std::chrono::milliseconds(150)); };
  v1::PutRequest message = f.PutAs(1, part);
  *message.add_more() = f.PutAs(2, part);
  message.mutable_more(0)->set_timeout_ms(100);
  *message.add_more() = f.PutAs(3, part);
  auto by_id = Flatten(f.Put({message}));
  ExpectItem(by_id[1].status(), Code::OK, {});
  ExpectItem(by_id[2].status(), Code::DEADLINE_EXCEEDED, {"time was over"});
  ExpectItem(by_id[3].status(), Code::OK, {});
  EXPECT_EQ(f.gpu.encodes, 1) << "what comes in one message goes to the card together";
  EXPECT_EQ(f.pool.GetStats().blocks, 2);
}

TEST(PutTogetherRpcTest, AFullQueueRefusesNothingThatARunningTaskWillDo) {
  GpuFixture f(uint64_t{256} << 20, /*max_queued=*/1);
  const auto model = f.Register("m", "qjl");
  const RawPart part = RandomPart(*model, {}, 16, 1);
  Mutex mu;
  CondVar changed;
  bool encoding = false, open = false;
  const auto wait = [&] {
    MutexLock lock(&mu);
    while (!open) changed.Wait(&mu);
  };
  f.gpu.on_encode = [&] {
    {
      MutexLock lock(&mu);
      encoding = true;
      changed.NotifyAll();
    }
    wait();
  };
  grpc::ClientContext call;
  const auto stream = f.cache->Put(&call);
  ASSERT_TRUE(stream->Write(f.PutAs(1, part)));
  {
    MutexLock lock(&mu);
    while (!encoding) changed.Wait(&mu);
  }
  // The other thread waits too, and a task stands in the queue.
  const auto drop = [](const absl::Status&) {};
  SKETCHKV_ASSERT_OK(f.executor.Submit({.run = wait, .drop = drop}));
  while (!f.executor.Submit({.run = wait, .drop = drop}).ok()) std::this_thread::yield();
  ASSERT_TRUE(stream->Write(f.PutAs(2, part)));
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  {
    MutexLock lock(&mu);
    open = true;
    changed.NotifyAll();
  }
  stream->WritesDone();
  std::vector<v1::PutResponse> answers(1);
  while (stream->Read(&answers.back())) answers.emplace_back();
  answers.pop_back();
  EXPECT_TRUE(stream->Finish().ok());
  auto by_id = Flatten(answers);
  ExpectItem(by_id[1].status(), Code::OK, {});
  ExpectItem(by_id[2].status(), Code::OK, {});
}

// Who sends nothing in `more` need not look for answers there.
TEST(PutTogetherRpcTest, AnswersTravelTogetherOnlyWhereItemsDid) {
  constexpr uint64_t kItems = 200;
  GpuFixture f;
  const auto model = f.Register("m", "qjl");
  const RawPart part = RandomPart(*model, {}, 16, 1);
  for (const bool together : {false, true}) {
    std::vector<v1::PutRequest> messages;
    for (uint64_t id = 1; id <= kItems; ++id) {
      if (together && id % 20 != 1) {
        *messages.back().add_more() = f.PutAs(id, part);
      } else {
        messages.push_back(f.PutAs(id, part));
      }
    }
    const auto answers = f.Put(messages);
    EXPECT_EQ(Flatten(answers).size(), kItems);
    if (together) {
      EXPECT_LT(answers.size(), kItems);
    } else {
      EXPECT_EQ(answers.size(), kItems);
    }
  }
}

}  // namespace
}  // namespace sketchkv
