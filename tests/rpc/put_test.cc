#include <gtest/gtest.h>

#include <map>
#include <thread>

#include "tests/rpc/rpc_fixture.h"

namespace sketchkv {
namespace {

std::map<uint64_t, v1::PutResponse> ById(const std::vector<v1::PutResponse>& responses) {
  std::map<uint64_t, v1::PutResponse> by_id;
  for (const v1::PutResponse& response : responses) by_id[response.request_id()] = response;
  EXPECT_EQ(by_id.size(), responses.size()) << "each item has one acknowledgement";
  return by_id;
}

void Append(const std::vector<v1::PutRequest>& more, std::vector<v1::PutRequest>* messages) {
  messages->insert(messages->end(), more.begin(), more.end());
}

TEST(PutRpcTest, PartsInBothLayoutsSealABlockAndARepeatSaysSo) {
  RpcFixture f;
  const auto model = f.Register("m", "qjl");
  const RawPart nhd = RandomPart(*model, {0, 1, 0, 2}, 16, 1, RawOrder::kNhd);
  const RawPart hnd = RandomPart(*model, {1, 1, 0, 2}, 16, 2, RawOrder::kHnd);
  std::vector<v1::PutRequest> messages;
  Append(RpcFixture::PutMessages(1, "m", 1, 0, nhd), &messages);
  auto responses = f.Put(messages);
  ASSERT_EQ(responses.size(), 1);
  EXPECT_FALSE(responses[0].sealed());
  messages = RpcFixture::PutMessages(2, "m", 1, 0, hnd);
  responses = f.Put(messages);
  EXPECT_TRUE(responses[0].sealed());
  EXPECT_FALSE(responses[0].already_present());
  responses = f.Put(messages);
  EXPECT_EQ(responses[0].status().code(), 0);
  EXPECT_TRUE(responses[0].already_present());
}

TEST(PutRpcTest, OneBadPartFailsAloneAndTheStreamGoesOn) {
  RpcFixture f;
  const auto model = f.Register("m", "qjl");
  const RawPart good = RandomPart(*model, {}, 16, 1);
  std::vector<v1::PutRequest> messages;
  const size_t row = 32 * 4;
  Append(RpcFixture::PutMessages(1, "m", 1, 0, good, row * 10), &messages);
  // 2: a flipped bit. 3: truncated. 4: unknown model. 5: surplus. 6: a row cut in two. 7: tokens.
  auto flipped = RpcFixture::PutMessages(2, "m", 2, 0, good);
  (*flipped[0].mutable_payload())[9] ^= 1;
  Append(flipped, &messages);
  auto truncated = RpcFixture::PutMessages(3, "m", 3, 0, good, row * 10);
  truncated.pop_back();
  Append(truncated, &messages);
  Append(RpcFixture::PutMessages(4, "nobody", 4, 0, good, row * 10), &messages);
  auto surplus = RpcFixture::PutMessages(5, "m", 5, 0, good);
  surplus[0].mutable_payload()->append(row, 'x');
  Append(surplus, &messages);
  Append(RpcFixture::PutMessages(6, "m", 6, 0, good, row + 2), &messages);
  RawPart long_block = good;
  long_block.layout.num_tokens = 17;
  Append(RpcFixture::PutMessages(7, "m", 7, 0, long_block, row * 10), &messages);
  auto bad_hash = RpcFixture::PutMessages(8, "m", 8, 0, good);
  bad_hash[0].mutable_header()->set_block_hash("short");
  Append(bad_hash, &messages);
  Append(RpcFixture::PutMessages(9, "m", 9, 1, good), &messages);

  auto by_id = ById(f.Put(messages));
  ASSERT_EQ(by_id.size(), 9);
  EXPECT_EQ(by_id[1].status().code(), 0) << by_id[1].status().message();
  ExpectItem(by_id[2].status(), grpc::StatusCode::DATA_LOSS, {"checksum"});
  const std::string whole = std::to_string(good.payload.size());
  ExpectItem(by_id[3].status(), grpc::StatusCode::INVALID_ARGUMENT, {"payload has", whole});
  ExpectItem(by_id[4].status(), grpc::StatusCode::NOT_FOUND, {"nobody"});
  ExpectItem(by_id[5].status(), grpc::StatusCode::INVALID_ARGUMENT,
             {std::to_string(good.payload.size() + row), whole});
  ExpectItem(by_id[6].status(), grpc::StatusCode::INVALID_ARGUMENT, {"inside a (head, token) row"});
  ExpectItem(by_id[7].status(), grpc::StatusCode::INVALID_ARGUMENT, {"num_tokens is 17", "16"});
  ExpectItem(by_id[8].status(), grpc::StatusCode::INVALID_ARGUMENT, {"block_hash", "5"});
  EXPECT_EQ(by_id[9].status().code(), 0) << by_id[9].status().message();
  EXPECT_EQ(f.pool.GetStats().blocks, 2) << "what failed left nothing";
  f.ExpectNothingInFlight();
}

TEST(PutRpcTest, OnlyTheLastMessagesChecksumCountsAndAWrongOneStoresNothing) {
  RpcFixture f;
  const auto model = f.Register("m", "qjl");
  const RawPart part = RandomPart(*model, {}, 16, 1);
  const size_t chunk = 32 * 4 * 10;
  std::vector<v1::PutRequest> messages;
  auto early = RpcFixture::PutMessages(1, "m", 1, 0, part, chunk);
  early.front().set_checksum(part.layout.checksum);
  early.back().clear_checksum();
  Append(early, &messages);
  auto wrong = RpcFixture::PutMessages(2, "m", 2, 0, part, chunk);
  wrong.back().set_checksum(part.layout.checksum + 1);
  Append(wrong, &messages);
  auto by_id = ById(f.Put(messages));
  ExpectItem(by_id[1].status(), grpc::StatusCode::DATA_LOSS, {"checksum", "0x0"});
  ExpectItem(by_id[2].status(), grpc::StatusCode::DATA_LOSS, {"checksum"});
  EXPECT_EQ(f.pool.GetStats().blocks, 0);
}

TEST(PutRpcTest, AStreamCutBeforeTheLastMessageStoresNothing) {
  RpcFixture f;
  const auto model = f.Register("m", "qjl");
  auto cut = RpcFixture::PutMessages(1, "m", 1, 0, RandomPart(*model, {}, 16, 1), 32 * 4 * 10);
  cut.pop_back();
  const auto responses = f.Put(cut);
  ASSERT_EQ(responses.size(), 1);
  ExpectItem(responses[0].status(), grpc::StatusCode::INVALID_ARGUMENT, {"payload has"});
  {
    grpc::ClientContext call;
    RpcFixture::SetDeadline(&call);
    const auto stream = f.cache->Put(&call);
    for (const v1::PutRequest& message : cut) ASSERT_TRUE(stream->Write(message));
    call.TryCancel();
    EXPECT_EQ(stream->Finish().error_code(), grpc::StatusCode::CANCELLED);
  }
  f.ExpectNothingInFlight();
  EXPECT_EQ(f.pool.GetStats().blocks, 0);
}

TEST(PutRpcTest, ConflictsWithWhatIsStoredAreRefused) {
  RpcFixture f;
  const auto model = f.Register("m", "qjl");
  const RawPart part = RandomPart(*model, {}, 16, 1);
  const RawPart brief = RandomPart(*model, {}, 7, 1);
  f.PutOk("m", 1, 0, part);
  f.PutOk("m", 2, 1, part);
  f.PutOk("m", 3, 2, brief);
  std::vector<v1::PutRequest> messages;
  Append(RpcFixture::PutMessages(1, "m", 2, 9, part), &messages);   // another parent
  Append(RpcFixture::PutMessages(2, "m", 2, 0, part), &messages);   // no parent
  Append(RpcFixture::PutMessages(3, "m", 2, 1, brief), &messages);  // another length
  Append(RpcFixture::PutMessages(4, "m", 4, 3, part), &messages);   // a short parent
  for (auto& [id, response] : ById(f.Put(messages))) {
    ExpectItem(response.status(), grpc::StatusCode::FAILED_PRECONDITION, {});
  }
  EXPECT_EQ(f.pool.GetStats().blocks, 3);
}

TEST(PutRpcTest, EncodedPartsOfAnotherModelOrFutureFormatAreRefused) {
  RpcFixture f;
  const auto model = f.Register("m", "qjl");
  const RawPart raw = RandomPart(*model, {}, 16, 1);
  const Part encoded = *EncodePart(f.engine, *model, raw.layout, Bytes(raw.payload));
  RawPart part{.layout = encoded.layout, .payload = encoded.payload.ToString()};
  std::vector<v1::PutRequest> messages;
  Append(RpcFixture::PutMessages(1, "m", 1, 0, part), &messages);
  part.layout.format_version = kFormatVersion + 1;
  Append(RpcFixture::PutMessages(2, "m", 2, 0, part), &messages);
  part.layout.format_version = kFormatVersion;
  part.layout.fingerprint[3] ^= 1;
  Append(RpcFixture::PutMessages(3, "m", 3, 0, part), &messages);
  auto by_id = ById(f.Put(messages));
  EXPECT_EQ(by_id[1].status().code(), 0) << by_id[1].status().message();
  ExpectItem(by_id[2].status(), grpc::StatusCode::INVALID_ARGUMENT, {"format_version is 2"});
  ExpectItem(by_id[3].status(), grpc::StatusCode::INVALID_ARGUMENT, {"fingerprint is"});
}

TEST(PutRpcTest, MessagesThatBelongToNoItemEndTheStream) {
  RpcFixture f;
  f.Register("m", "qjl");
  v1::PutRequest stray;
  stray.set_request_id(5);
  stray.set_payload("x");
  grpc::Status status;
  EXPECT_TRUE(f.Put({stray}, &status).empty());
  ExpectCall(status, grpc::StatusCode::INVALID_ARGUMENT, {"5"});
  v1::PutRequest anonymous;
  anonymous.mutable_header()->set_model("m");
  EXPECT_TRUE(f.Put({anonymous}, &status).empty());
  ExpectCall(status, grpc::StatusCode::INVALID_ARGUMENT, {"request_id is 0"});
}

TEST(PutRpcTest, BlocksLargerThanThePoolAreResourceExhaustedWithBothNumbers) {
  RpcFixture f({.budget_bytes = 4096});
  const auto model = f.Register("m", "raw");
  const RawPart part = RandomPart(*model, {}, 16, 1);  // 12,288 bytes raw
  ASSERT_GT(model->shape.slot_bytes, 4096);
  auto by_id = ById(f.Put(RpcFixture::PutMessages(1, "m", 1, 0, part)));
  ExpectItem(by_id[1].status(), grpc::StatusCode::RESOURCE_EXHAUSTED,
             {std::to_string(model->shape.slot_bytes), "4096"});
  EXPECT_EQ(by_id[1].status().retry_after_ms(), 0) << "trying again is in vain";
}

TEST(PutRpcTest, PayloadsAreAdmittedAndRefusedWithAHintWhenTheyDoNotFitNow) {
  RpcFixture f({.inflight_bytes = 20000});
  const auto model = f.Register("m", "raw");
  const RawPart part = RandomPart(*model, {}, 16, 1);  // 12,288 bytes
  // 1 sends its header and two thirds of its payload in pieces; then 2 arrives.
  auto slow = RpcFixture::PutMessages(1, "m", 1, 0, part, 4096);
  grpc::ClientContext slow_call;
  RpcFixture::SetDeadline(&slow_call);
  const auto slow_stream = f.cache->Put(&slow_call);
  ASSERT_TRUE(slow_stream->Write(slow[0]));
  ASSERT_TRUE(slow_stream->Write(slow[1]));
  for (int i = 0; i < 2000 && f.inflight.used() < 8192; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  ASSERT_EQ(f.inflight.used(), 8192);
  auto by_id = ById(f.Put(RpcFixture::PutMessages(2, "m", 2, 0, part)));
  ExpectItem(by_id[2].status(), grpc::StatusCode::RESOURCE_EXHAUSTED, {"12288", "8192", "20000"});
  EXPECT_GT(by_id[2].status().retry_after_ms(), 0);
  ASSERT_TRUE(slow_stream->Write(slow[2]));
  slow_stream->WritesDone();
  v1::PutResponse response;
  ASSERT_TRUE(slow_stream->Read(&response));
  EXPECT_EQ(response.status().code(), 0) << response.status().message();
  f.ExpectNothingInFlight();

  v1::RegisterModelRequest wide = RpcFixture::ModelRequest("wide", "raw");
  wide.mutable_layout()->set_block_tokens(64);
  v1::Model registered;
  ASSERT_TRUE(f.Register(wide, &registered).ok());
  const RawPart large = RandomPart(**f.registry.Get(0, "wide"), {}, 64, 1);
  by_id = ById(f.Put(RpcFixture::PutMessages(2, "wide", 1, 0, large)));
  ExpectItem(by_id[2].status(), grpc::StatusCode::RESOURCE_EXHAUSTED,
             {std::to_string(large.payload.size()), "20000"});
  EXPECT_EQ(by_id[2].status().retry_after_ms(), 0);
}

TEST(PutRpcTest, AFullQueueIsRefusedWithAHint) {
  RpcFixture f({.max_queued = 1});
  const auto model = f.Register("m", "raw");
  // Both threads wait, and one task stands in the queue.
  Mutex mu;
  CondVar opened;
  bool open = false;
  std::atomic<int> waiting{0};
  const auto wait = [&] {
    ++waiting;
    MutexLock lock(&mu);
    while (!open) opened.Wait(&mu);
  };
  for (int i = 0; i < 2; ++i) {
    while (!f.executor.Submit({.run = wait, .drop = [](absl::Status) {}}).ok()) {
      std::this_thread::yield();
    }
  }
  while (waiting < 2) std::this_thread::yield();
  SKETCHKV_ASSERT_OK(f.executor.Submit({.run = [] {}, .drop = [](absl::Status) {}}));
  auto by_id = ById(f.Put(RpcFixture::PutMessages(1, "m", 1, 0, RandomPart(*model, {}, 16, 1))));
  ExpectItem(by_id[1].status(), grpc::StatusCode::RESOURCE_EXHAUSTED, {"queue", "1 of 1"});
  EXPECT_GT(by_id[1].status().retry_after_ms(), 0);
  grpc::ClientContext call;
  v1::ListModelsResponse list;
  ExpectCall(f.models->ListModels(&call, {}, &list), grpc::StatusCode::RESOURCE_EXHAUSTED,
             {"1 of 1"});
  MutexLock lock(&mu);
  open = true;
  opened.NotifyAll();
}

TEST(PutRpcTest, NanIsRefusedNamingLayerHeadAndToken) {
  RpcFixture f;
  const auto model = f.Register("m", "qjl");
  RawPart part = RandomPart(*model, {}, 16, 1);
  const float inf = -std::numeric_limits<float>::infinity();
  // Layer 1, keys, token 3, head 1, channel 0.
  std::memcpy(part.payload.data() + 16 * 2 * 48 * 4 + (3 * 2 + 1) * 32 * 4, &inf, sizeof(inf));
  part.layout.checksum = PayloadChecksum(Bytes(part.payload));
  auto by_id = ById(f.Put(RpcFixture::PutMessages(1, "m", 1, 0, part)));
  ExpectItem(by_id[1].status(), grpc::StatusCode::INVALID_ARGUMENT,
             {"layer 1", "head 1", "token 3"});
  EXPECT_EQ(f.pool.GetStats().blocks, 0);
}

TEST(PutRpcTest, ACancelledPutLeavesNothingVisible) {
  RpcFixture f;
  const auto model = f.Register("m", "qjl");
  const RawPart part = RandomPart(*model, {}, 16, 1);
  auto messages = RpcFixture::PutMessages(1, "m", 1, 0, part, 32 * 4 * 4);
  {
    grpc::ClientContext call;
    const auto stream = f.cache->Put(&call);
    for (size_t i = 0; i + 1 < messages.size(); ++i) ASSERT_TRUE(stream->Write(messages[i]));
    call.TryCancel();
    EXPECT_EQ(stream->Finish().error_code(), grpc::StatusCode::CANCELLED);
  }
  f.ExpectNothingInFlight();  // the server learns of it a moment later
  EXPECT_EQ(f.pool.GetStats().blocks, 0);
}

TEST(PutRpcTest, AnItemPastItsTimeoutIsDroppedAndTheStreamGoesOn) {
  RpcFixture f;
  const auto model = f.Register("m", "qjl");
  const RawPart part = RandomPart(*model, {}, 16, 1);
  auto late = RpcFixture::PutMessages(1, "m", 1, 0, part, 32 * 4 * 4);
  late[0].set_timeout_ms(1);
  grpc::ClientContext call;
  RpcFixture::SetDeadline(&call);
  const auto stream = f.cache->Put(&call);
  ASSERT_TRUE(stream->Write(late[0]));
  std::this_thread::sleep_for(std::chrono::milliseconds(20));  // its own time, not ours
  for (size_t i = 1; i < late.size(); ++i) ASSERT_TRUE(stream->Write(late[i]));
  for (const auto& message : RpcFixture::PutMessages(2, "m", 2, 0, part)) stream->Write(message);
  stream->WritesDone();
  std::vector<v1::PutResponse> responses;
  for (v1::PutResponse response; stream->Read(&response);) responses.push_back(response);
  ASSERT_TRUE(stream->Finish().ok());
  auto by_id = ById(responses);
  ExpectItem(by_id[1].status(), grpc::StatusCode::DEADLINE_EXCEEDED, {});
  EXPECT_EQ(by_id[2].status().code(), 0);
  EXPECT_EQ(f.pool.GetStats().blocks, 1);
}

TEST(PutRpcTest, AnUploadThatStallsIsAnsweredInItsTimeAndLetsGo) {
  RpcFixture f;
  const auto model = f.Register("m", "qjl");
  const RawPart part = RandomPart(*model, {}, 16, 1);
  auto stalled = RpcFixture::PutMessages(1, "m", 1, 0, part, 32 * 4 * 4);
  stalled[0].set_timeout_ms(50);
  grpc::ClientContext call;
  RpcFixture::SetDeadline(&call);
  const auto stream = f.cache->Put(&call);
  ASSERT_TRUE(stream->Write(stalled[0]));
  v1::PutResponse response;
  ASSERT_TRUE(stream->Read(&response)) << "without another message from us";
  ExpectItem(response.status(), grpc::StatusCode::DEADLINE_EXCEEDED,
             {"512", std::to_string(part.payload.size())});
  f.ExpectNothingInFlight();
  // What comes of it late is skipped, and the stream goes on.
  ASSERT_TRUE(stream->Write(stalled[1]));
  for (const auto& message : RpcFixture::PutMessages(2, "m", 2, 0, part)) stream->Write(message);
  ASSERT_TRUE(stream->Read(&response));
  EXPECT_EQ(response.request_id(), 2);
  EXPECT_EQ(response.status().code(), 0) << response.status().message();
  // A stalled upload is let go of when its caller leaves, too.
  stalled[0].set_timeout_ms(0);
  ASSERT_TRUE(stream->Write(stalled[0]));
  call.TryCancel();
  stream->Finish();
  f.ExpectNothingInFlight();
  EXPECT_EQ(f.pool.GetStats().blocks, 1);
}

TEST(PutRpcTest, TwoWritersOfTheSameBlockBothSucceedAndOneWins) {
  RpcFixture f;
  const auto model = f.Register("m", "qjl");
  const RawPart part = RandomPart(*model, {}, 16, 1);
  std::vector<std::thread> writers;
  std::atomic<int> fresh{0}, repeated{0};
  for (int w = 0; w < 4; ++w) {
    writers.emplace_back([&] {
      for (uint64_t hash = 1; hash <= 25; ++hash) {
        const auto responses = f.Put(RpcFixture::PutMessages(1, "m", hash, hash - 1, part));
        ASSERT_EQ(responses.size(), 1);
        ASSERT_EQ(responses[0].status().code(), 0) << responses[0].status().message();
        ASSERT_TRUE(responses[0].sealed());
        ++(responses[0].already_present() ? repeated : fresh);
      }
    });
  }
  for (std::thread& writer : writers) writer.join();
  EXPECT_EQ(fresh, 25);
  EXPECT_EQ(repeated, 75);
}

TEST(PutRpcTest, PayloadsOfManyMegabytesTravelInChunks) {
  RpcFixture f;
  v1::RegisterModelRequest wide = RpcFixture::ModelRequest("wide", "raw");
  wide.mutable_layout()->set_block_tokens(1024);
  wide.mutable_layout()->set_num_kv_heads(8);
  wide.mutable_layout()->set_head_dim(128);
  v1::Model registered;
  ASSERT_TRUE(f.Register(wide, &registered).ok());
  const auto model = *f.registry.Get(0, "wide");
  const RawPart part = RandomPart(*model, {}, 1024, 1);  // 9.4 MB
  ASSERT_GT(part.payload.size(), 2 * kMaxChunkBytes);
  auto by_id = ById(f.Put(RpcFixture::PutMessages(1, "wide", 1, 0, part, 128 * 4 * 1000)));
  ASSERT_EQ(by_id[1].status().code(), 0) << by_id[1].status().message();
  v1::GetRequest get = RpcFixture::GetRequestFor(7, "wide", 1);
  get.mutable_format()->set_dtype(v1::DTYPE_FP32);
  get.mutable_format()->set_raw_order(v1::RAW_ORDER_NHD);
  const auto chunks = f.Get({get});
  ASSERT_GT(chunks.size(), 2);
  const RawPartFormat format(model->layout(), part.layout.range, 1024, RawOrder::kNhd);
  std::string payload;
  for (size_t i = 0; i < chunks.size(); ++i) {
    EXPECT_EQ(chunks[i].has_status(), i + 1 == chunks.size());
    EXPECT_EQ(chunks[i].has_part(), i == 0);
    EXPECT_LE(chunks[i].payload().size(), kMaxChunkBytes);
    payload += chunks[i].payload();
    EXPECT_TRUE(format.IsRowBoundary(payload.size()));
  }
  EXPECT_EQ(payload, part.payload);
  EXPECT_EQ(chunks.back().checksum(), PayloadChecksum(Bytes(payload)));

  // A cell of the last layer is damaged: what was decoded before has gone out by then.
  {
    SKETCHKV_ASSERT_OK_AND_ASSIGN(
        const ReadPins pins,
        f.pool.Pin({.tenant = 0, .fingerprint = model->fingerprint, .hash = TestHash(1)}));
    const_cast<std::byte*>(pins[0].bytes.data())[pins[0].bytes.size() - 1] ^= std::byte{1};
  }
  const auto damaged = f.Get({get});
  ASSERT_GT(damaged.size(), 1);
  EXPECT_TRUE(damaged[0].has_part());
  ExpectItem(damaged.back().status(), grpc::StatusCode::DATA_LOSS, {"layer 1, head 7"});
  EXPECT_EQ(damaged.back().checksum(), 0);
  EXPECT_EQ(damaged.back().payload().size(), 0);
  f.ExpectNothingInFlight();
}

}  // namespace
}  // namespace sketchkv
