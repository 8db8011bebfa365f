// Put, and what Put and Get share, against a server that misbehaves as told.
#include <condition_variable>
#include <mutex>

#include "tests/client/store_fixture.h"

namespace sketchkv {
namespace {

TEST_F(StoreTest, PutSendsWhatTheProtocolSays) {
  ArrivedPut put;
  server_.cache.on_put = [&](grpc::ServerContext*, PutStream* stream) {
    ReadPut(stream, kSmallBlockBytes, &put);
    stream->Write(PutAnswer(put.first.request_id()));
    return grpc::Status::OK;
  };
  PutPart part = SmallPart(payload_);
  part.parent_hash = BlockId(16, 'p');
  part.order = RawOrder::kHnd;
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const PutResult result, server_.NewClient()->Put(part));
  EXPECT_TRUE(result.sealed);
  EXPECT_FALSE(result.already_present);
  const v1::PutHeader& header = put.first.header();
  EXPECT_NE(put.first.request_id(), 0u);
  EXPECT_GT(put.first.timeout_ms(), 0u);
  EXPECT_LE(put.first.timeout_ms(), 10'000u);
  EXPECT_EQ(header.model(), "small");
  EXPECT_EQ(header.block_hash(), part.block_hash);
  EXPECT_EQ(header.parent_hash(), part.parent_hash);
  EXPECT_FALSE(header.encoded());
  EXPECT_EQ(header.part().range().layer_count(), 2u);
  EXPECT_EQ(header.part().range().head_count(), 2u);
  EXPECT_EQ(header.part().num_tokens(), 8u);
  EXPECT_EQ(header.part().raw_order(), v1::RAW_ORDER_HND);
  EXPECT_EQ(put.checksum, Checksum(payload_));
  EXPECT_EQ(std::memcmp(put.payload.data(), payload_.data(), payload_.size()), 0);
}

// 8 parts of 8 MiB while the server holds its acknowledgements back for four parts: both
// sides' windows fill, and a client that wrote and read in turns would stand still.
TEST_F(StoreTest, PutAllPipelinesLargePartsInChunks) {
  v1::Model model = SmallModel("large");
  model.mutable_layout()->set_num_layers(4);
  model.mutable_layout()->set_num_kv_heads(8);
  model.mutable_layout()->set_head_dim(128);
  model.mutable_layout()->set_value_dim(128);
  model.mutable_layout()->set_block_tokens(256);
  model.mutable_profiles(0)->set_layer_count(4);
  model.set_slot_bytes(4 * 8 * 64);
  server_.models.models["large"] = model;
  const std::vector<std::byte> payload = Bytes(4 * 8 * 256 * 256 * 4);
  ASSERT_GT(payload.size(), 2 * client::kMaxChunkBytes);
  int num_whole = 0;
  server_.cache.on_put = [&](grpc::ServerContext*, PutStream* stream) {
    std::vector<uint64_t> held;
    ArrivedPut put;
    while (ReadPut(stream, payload.size(), &put)) {
      bool whole = put.payload.size() == payload.size() &&
                   std::memcmp(put.payload.data(), payload.data(), payload.size()) == 0 &&
                   put.chunk_bytes.size() >= 3;
      for (const size_t bytes : put.chunk_bytes) whole &= bytes <= client::kMaxChunkBytes;
      num_whole += whole;
      held.push_back(put.first.request_id());
      if (held.size() < 4) continue;
      for (const uint64_t id : held) stream->Write(PutAnswer(id));
      held.clear();
    }
    return grpc::Status::OK;
  };
  PutPart part = SmallPart(payload);
  part.model = "large";
  part.num_tokens = 256;
  const std::vector<PutPart> parts(8, part);
  for (const auto& result : server_.NewClient()->PutAll(parts)) SKETCHKV_EXPECT_OK(result);
  EXPECT_EQ(num_whole, 8);
}

TEST_F(StoreTest, AnswersOutOfOrderFindTheirParts) {
  server_.cache.on_put = [](grpc::ServerContext*, PutStream* stream) {
    std::vector<v1::PutResponse> answers;
    ArrivedPut put;
    while (answers.size() < 5 && ReadPut(stream, kSmallBlockBytes, &put)) {
      v1::PutResponse answer = PutAnswer(put.first.request_id());
      answer.set_already_present(put.first.header().block_hash()[0] % 2 == 0);
      answers.push_back(answer);
    }
    for (size_t i = answers.size(); i-- > 0;) stream->Write(answers[i]);
    return grpc::Status::OK;
  };
  std::vector<PutPart> parts;
  for (char name = 'a'; name < 'f'; ++name) parts.push_back(SmallPart(payload_, name));
  const auto results = server_.NewClient()->PutAll(parts);
  for (size_t i = 0; i < 5; ++i) {
    SKETCHKV_ASSERT_OK(results[i]);
    EXPECT_EQ(results[i]->already_present, parts[i].block_hash[0] % 2 == 0);
  }
}

TEST_F(StoreTest, BadPartFailsAlone) {
  AnswerPuts([](uint64_t id) {
    return id == 2 ? PutAnswer(id, 9, "parent_hash is another") : PutAnswer(id);
  });
  std::vector<PutPart> parts(4, SmallPart(payload_));
  parts[0].payload = parts[0].payload.first(100);  // never leaves the client
  const auto results = server_.NewClient(options_)->PutAll(parts);
  EXPECT_THAT(results[0],
              StatusIs(absl::StatusCode::kInvalidArgument, {"payload has 100 bytes", "4096"}));
  SKETCHKV_EXPECT_OK(results[1]);
  EXPECT_THAT(results[2], StatusIs(absl::StatusCode::kFailedPrecondition, {"parent_hash"}));
  SKETCHKV_EXPECT_OK(results[3]);
  EXPECT_EQ(server_.cache.num_puts, 1);
}

TEST_F(StoreTest, SizesAreCheckedBeforeAnythingIsSent) {
  const auto client = server_.NewClient();
  PutPart part = SmallPart(payload_);
  part.num_tokens = 9;
  EXPECT_THAT(client->Put(part),
              StatusIs(absl::StatusCode::kInvalidArgument, {"num_tokens", "9", "8"}));
  part = SmallPart(payload_);
  part.block_hash = "short";
  EXPECT_THAT(client->Put(part),
              StatusIs(absl::StatusCode::kInvalidArgument, {"block_hash", "5", "16"}));
  part = SmallPart(payload_);
  part.encoded = true;
  EXPECT_THAT(client->Put(part), StatusIs(absl::StatusCode::kInvalidArgument, {"4096", "256"}));
  EXPECT_THAT(client->Lookup("small", {}), StatusIs(absl::StatusCode::kInvalidArgument, {"chain"}));
  EXPECT_EQ(server_.cache.num_puts, 0);
}

TEST_F(StoreTest, RetriesWhatPasses) {
  std::atomic<int> tries = 0;
  AnswerPuts([&](uint64_t id) {
    switch (++tries) {
      case 1:
        return PutAnswer(id, 14, "draining");
      case 2:
        return PutAnswer(id, 10, "another put");
      case 3:
        return PutAnswer(id, 8, "pool full", 30);
      default:
        return PutAnswer(id);
    }
  });
  const auto begin = steady_clock::now();
  SKETCHKV_EXPECT_OK(server_.NewClient(options_)->Put(SmallPart(payload_)));
  EXPECT_EQ(tries, 4);
  EXPECT_GE(steady_clock::now() - begin, milliseconds(30)) << "the server's hint is a lower bound";
}

TEST_F(StoreTest, RetriesOnlyThePartsThatFailed) {
  std::map<char, int> tries;
  server_.cache.on_put = [&](grpc::ServerContext*, PutStream* stream) {
    ArrivedPut put;
    while (ReadPut(stream, kSmallBlockBytes, &put)) {
      const char name = put.first.header().block_hash()[0];
      const bool refuse = ++tries[name] == 1 && name == 'b';
      stream->Write(PutAnswer(put.first.request_id(), refuse ? 14 : 0));
    }
    return grpc::Status::OK;
  };
  const std::vector<PutPart> parts = {SmallPart(payload_, 'a'), SmallPart(payload_, 'b'),
                                      SmallPart(payload_, 'c')};
  for (const auto& result : server_.NewClient(options_)->PutAll(parts)) SKETCHKV_EXPECT_OK(result);
  EXPECT_EQ(tries, (std::map<char, int>{{'a', 1}, {'b', 2}, {'c', 1}}));
}

TEST_F(StoreTest, DoesNotRetryWhatStays) {
  for (const int code : {3, 5, 8, 9, 15}) {  // 8, RESOURCE_EXHAUSTED: without a hint
    std::atomic<int> tries = 0;
    AnswerPuts([&](uint64_t id) {
      ++tries;
      return PutAnswer(id, code, "no");
    });
    EXPECT_THAT(server_.NewClient(options_)->Put(SmallPart(payload_)),
                StatusIs(static_cast<absl::StatusCode>(code), {"no"}));
    EXPECT_EQ(tries, 1) << code;
  }
}

TEST_F(StoreTest, GivesUpAfterMaxRetries) {
  std::atomic<int> tries = 0;
  AnswerPuts([&](uint64_t id) {
    ++tries;
    return PutAnswer(id, 14, "draining");
  });
  options_.max_retries = 2;
  EXPECT_THAT(server_.NewClient(options_)->Put(SmallPart(payload_)),
              StatusIs(absl::StatusCode::kUnavailable, {"draining"}));
  EXPECT_EQ(tries, 3);
}

// A server that admits one part at a time.
TEST_F(StoreTest, TryThatGetsAPartThroughCostsNoRetry) {
  server_.cache.on_put = [](grpc::ServerContext*, PutStream* stream) {
    ArrivedPut put;
    for (int i = 0; ReadPut(stream, kSmallBlockBytes, &put); ++i) {
      stream->Write(PutAnswer(put.first.request_id(), i == 0 ? 0 : 8, "in flight", i == 0 ? 0 : 1));
    }
    return grpc::Status::OK;
  };
  options_.max_retries = 1;
  const std::vector<PutPart> parts(8, SmallPart(payload_));
  for (const auto& result : server_.NewClient(options_)->PutAll(parts)) SKETCHKV_EXPECT_OK(result);
  EXPECT_EQ(server_.cache.num_puts, 8);
}

TEST_F(StoreTest, PartToldToWaitPastTheDeadlineLeavesTheOthersTheirRetry) {
  std::atomic<int> streams = 0;
  server_.cache.on_put = [&](grpc::ServerContext*, PutStream* stream) {
    const bool first = ++streams == 1;
    ArrivedPut put;
    while (ReadPut(stream, kSmallBlockBytes, &put)) {
      const bool late = put.first.header().block_hash()[0] == 'a';
      const int code = late || first ? 8 : 0;
      stream->Write(PutAnswer(put.first.request_id(), code, "full", late ? 3'600'000 : 1));
    }
    return grpc::Status::OK;
  };
  const std::vector<PutPart> parts = {SmallPart(payload_, 'a'), SmallPart(payload_, 'b')};
  const auto results = server_.NewClient(options_)->PutAll(parts);
  EXPECT_THAT(results[0], StatusIs(absl::StatusCode::kResourceExhausted, {"full"}));
  SKETCHKV_EXPECT_OK(results[1]);
}

TEST_F(StoreTest, StreamThatBreaksIsOpenedAgain) {
  std::atomic<int> streams = 0;
  server_.cache.on_put = [&](grpc::ServerContext*, PutStream* stream) {
    const bool first = ++streams == 1;
    ArrivedPut put;
    for (int i = 0; ReadPut(stream, kSmallBlockBytes, &put); ++i) {
      if (first && i == 1) return grpc::Status(grpc::StatusCode::UNAVAILABLE, "dying");
      stream->Write(PutAnswer(put.first.request_id()));
    }
    return grpc::Status::OK;
  };
  const std::vector<PutPart> parts(5, SmallPart(payload_));
  for (const auto& result : server_.NewClient(options_)->PutAll(parts)) SKETCHKV_EXPECT_OK(result);
  EXPECT_EQ(streams, 2);
}

TEST_F(StoreTest, DeadServerIsUnavailable) {
  std::thread stopper;
  server_.cache.on_put = [&](grpc::ServerContext* context, PutStream*) {
    if (!stopper.joinable()) stopper = std::thread([this] { server_.Stop(); });
    WaitUntilCancelled(context);
    return grpc::Status::OK;
  };
  options_.max_retries = 1;
  EXPECT_THAT(server_.NewClient(options_)->Put(SmallPart(payload_)),
              StatusIs(absl::StatusCode::kUnavailable));
  stopper.join();
}

TEST_F(StoreTest, DeadlineHoldsAgainstAServerThatNeverAnswers) {
  server_.cache.on_put = [](grpc::ServerContext* context, PutStream*) {
    WaitUntilCancelled(context);  // reads nothing either
    return grpc::Status::OK;
  };
  server_.cache.on_lookup = [](grpc::ServerContext* context, auto, auto) {
    WaitUntilCancelled(context);
    return grpc::Status::OK;
  };
  options_.timeout = milliseconds(150);
  const auto client = server_.NewClient(options_);
  SKETCHKV_ASSERT_OK(client->GetModel("small"));
  const std::vector<PutPart> parts(200, SmallPart(payload_));  // more than the windows take
  const auto begin = steady_clock::now();
  for (const auto& result : client->PutAll(parts)) {
    EXPECT_THAT(result, StatusIs(absl::StatusCode::kDeadlineExceeded));
  }
  const BlockId hash(32, 'a');
  EXPECT_THAT(client->Lookup("small", std::span(&hash, 1)),
              StatusIs(absl::StatusCode::kDeadlineExceeded));
  EXPECT_GE(steady_clock::now() - begin, milliseconds(300));
  EXPECT_LT(steady_clock::now() - begin, milliseconds(3000));
}

TEST_F(StoreTest, CellsOfAnotherModelAreRefusedAndTheModelAskedForAnew) {
  const std::vector<std::byte> cells = Bytes(256);
  server_.cache.on_get = [&](grpc::ServerContext*, GetStream* stream) {
    v1::GetRequest request;
    while (stream->Read(&request)) {
      v1::GetResponse response = GetAnswer(request.request_id(), cells);
      response.mutable_part()->set_fingerprint(server_.models.models["small"].fingerprint());
      stream->Write(response);
    }
    return grpc::Status::OK;
  };
  GetPart part = SmallGet();
  part.type.reset();
  const auto client = server_.NewClient(options_);
  SKETCHKV_EXPECT_OK(client->Get(part));
  server_.models.models["small"].set_fingerprint(std::string(16, 'g'));
  EXPECT_THAT(client->Get(part),
              StatusIs(absl::StatusCode::kInternal, {"fingerprint", "6767", "6666"}));
  SKETCHKV_EXPECT_OK(client->Get(part));
}

TEST_F(StoreTest, ModelIsAskedForOnceAndAgainWhenItChanged) {
  AnswerPuts([](uint64_t id) { return PutAnswer(id); });
  const auto client = server_.NewClient(options_);
  SKETCHKV_EXPECT_OK(client->Put(SmallPart(payload_)));
  SKETCHKV_EXPECT_OK(client->Put(SmallPart(payload_)));
  EXPECT_EQ(server_.models.num_gets, 1);
  // Another model under the name: half the tokens a block.
  v1::Model model = SmallModel("small");
  model.mutable_layout()->set_block_tokens(16);
  model.set_fingerprint(std::string(16, 'g'));
  server_.models.models["small"] = model;
  PutPart part = SmallPart(payload_);
  part.num_tokens = 16;
  const std::vector<std::byte> longer = Bytes(2 * kSmallBlockBytes);
  part.payload = longer;
  server_.cache.on_put = [](grpc::ServerContext*, PutStream* stream) {
    ArrivedPut put;
    while (ReadPut(stream, 2 * kSmallBlockBytes, &put)) {
      stream->Write(PutAnswer(put.first.request_id()));
    }
    return grpc::Status::OK;
  };
  SKETCHKV_EXPECT_OK(client->Put(part));
  EXPECT_EQ(server_.models.num_gets, 2);
  part.model = "none";
  EXPECT_THAT(client->Put(part), StatusIs(absl::StatusCode::kNotFound, {"none"}));
}

TEST_F(StoreTest, AsynchronousPutsRunTogetherAndCallBackOnce) {
  AnswerPuts([](uint64_t id) { return PutAnswer(id); });
  const auto client = server_.NewClient(options_);
  std::mutex mu;
  std::condition_variable changed;
  int num_done = 0, num_ok = 0;
  const PutPart part = SmallPart(payload_);
  for (int i = 0; i < 100; ++i) {
    client->PutAsync(part, [&](absl::StatusOr<PutResult> result) {
      const std::lock_guard<std::mutex> lock(mu);
      ++num_done;
      num_ok += result.ok();
      changed.notify_one();
    });
  }
  std::unique_lock<std::mutex> lock(mu);
  EXPECT_TRUE(changed.wait_for(lock, std::chrono::seconds(10), [&] { return num_done == 100; }));
  EXPECT_EQ(num_ok, 100);
}

TEST_F(StoreTest, DestroyingTheClientCancelsAsynchronousCalls) {
  std::atomic<int> waiting = 0;
  server_.cache.on_get = [&](grpc::ServerContext* context, GetStream*) {
    ++waiting;
    WaitUntilCancelled(context);
    return grpc::Status::OK;
  };
  options_.timeout = std::chrono::minutes(10);
  auto client = server_.NewClient(options_);
  std::atomic<int> cancelled = 0;
  const GetPart part = SmallGet();
  for (int i = 0; i < 40; ++i) {  // some under way, some still waiting for a thread
    client->GetAsync(part, [&](absl::StatusOr<GetResult> result) {
      cancelled += absl::IsCancelled(result.status());
    });
  }
  while (waiting == 0) std::this_thread::sleep_for(milliseconds(1));
  client.reset();
  EXPECT_EQ(cancelled, 40);
}

}  // namespace
}  // namespace sketchkv
