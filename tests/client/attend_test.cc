// Attend, Score and the session against a server that misbehaves as told.
#include <limits>

#include "tests/client/fake_server.h"
#include "tests/testing/status_matchers.h"

namespace sketchkv {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

// Two items of the small model: both kv heads at 2 queries each, then head 1 alone.
class AttendTest : public testing::Test {
 protected:
  AttendTest() {
    options_.retry_pause = milliseconds(1);
    call_.model = "small";
    call_.queries_per_kv_head = 2;
    call_.items.resize(2);
    call_.items[0].tip = BlockId(32, 't');
    call_.items[1].blocks = {BlockId(16, 'x'), BlockId(16, 'y')};
    call_.items[1].head_begin = 1;
    call_.items[1].num_query_tokens = 3;
    call_.items[1].token_end = 5;
    queries_.assign((4 + 6) * 16, 0.5f);
    call_.queries = queries_;
  }

  // Row r of the answer has r in every output and minus r as log-sum-exp.
  static v1::AttendResponse Answer(const v1::AttentionRequest& request) {
    std::vector<float> numbers;
    float row = 0;
    for (const v1::AttentionItem& item : request.items()) {
      const size_t rows =
          item.num_query_tokens() * item.head_count() * request.queries_per_kv_head();
      for (size_t i = 0; i < rows * 16; ++i) numbers.push_back(row + static_cast<float>(i / 16));
      for (size_t i = 0; i < rows; ++i) numbers.push_back(-row - static_cast<float>(i));
      row += static_cast<float>(rows);
    }
    v1::AttendResponse response;
    response.set_request_id(request.request_id());
    response.mutable_status()->set_code(0);
    response.set_payload(numbers.data(), numbers.size() * sizeof(float));
    return response;
  }
  static void ExpectAnswer(const absl::StatusOr<std::vector<AttentionOutput>>& outputs) {
    SKETCHKV_ASSERT_OK(outputs);
    ASSERT_EQ(outputs->size(), 2u);
    ASSERT_EQ((*outputs)[0].out.size(), 4u * 16);
    ASSERT_EQ((*outputs)[1].out.size(), 6u * 16);
    EXPECT_EQ((*outputs)[0].lse, (std::vector<float>{0, -1, -2, -3}));
    EXPECT_EQ((*outputs)[1].lse, (std::vector<float>{-4, -5, -6, -7, -8, -9}));
    EXPECT_EQ((*outputs)[1].out[5 * 16 + 15], 9);
  }

  ClientOptions options_;
  FakeServer server_;
  AttentionCall call_;
  std::vector<float> queries_;
};

TEST_F(AttendTest, SendsWhatTheProtocolSaysAndSplitsTheAnswer) {
  v1::AttentionRequest sent;
  server_.attention.on_attend = [&](auto, const v1::AttentionRequest* request,
                                    v1::AttendResponse* response) {
    sent = *request;
    *response = Answer(*request);
    return grpc::Status::OK;
  };
  ExpectAnswer(server_.NewClient()->Attend(call_));
  EXPECT_EQ(sent.queries().size(), queries_.size() * sizeof(float));
  EXPECT_EQ(sent.items(0).tip(), call_.items[0].tip);
  EXPECT_EQ(sent.items(0).head_count(), 2u);
  EXPECT_FALSE(sent.items(0).has_token_end());
  EXPECT_EQ(sent.items(1).blocks().block_hashes_size(), 2);
  EXPECT_EQ(sent.items(1).head_count(), 1u);
  EXPECT_EQ(sent.items(1).token_end(), 5u);
}

TEST_F(AttendTest, ChecksTheCall) {
  const auto client = server_.NewClient();
  const auto expect = [&](std::vector<std::string> parts) {
    EXPECT_THAT(client->Attend(call_), StatusIs(absl::StatusCode::kInvalidArgument, parts));
  };
  call_.queries = std::span(queries_).first(10);
  expect({"queries has 10", "160"});
  call_.items[1].lease_id = 7;
  expect({"items[1]", "2 are set"});
  call_.items[1].lease_id = 0;
  call_.items[0].layer = 2;
  expect({"items[0]", "layer_begin 2"});
  call_.items[0].layer = 0;
  call_.items[0].softmax_scale = std::numeric_limits<float>::quiet_NaN();
  expect({"softmax_scale"});
  call_.items[0].softmax_scale = 0;
  call_.queries_per_kv_head = 129;
  expect({"queries_per_kv_head is 129", "128"});
  call_.queries_per_kv_head = 128;
  call_.items[0].num_query_tokens = 1024;
  expect({"queries has 10", "4200448"});
  const std::vector<float> many(4'200'448);
  call_.queries = many;
  expect({"17851904 bytes", "4128768", "split"});  // lse included: 17 numbers a row
  AttentionItem chain = call_.items[1];
  chain.blocks.assign(65'536, BlockId(32, 'b'));
  chain.num_query_tokens = 1;
  call_.items.assign(2, chain);
  call_.queries = std::span(many).first(2 * 128 * 16);
  expect({"blocks take 44", "4161536", "split"});
  call_.items.clear();
  expect({"items is 0", "4096"});
}

TEST_F(AttendTest, RetriesAStatusInTheAnswerToo) {
  int tries = 0;
  server_.attention.on_attend = [&](auto, const v1::AttentionRequest* request,
                                    v1::AttendResponse* response) {
    *response = Answer(*request);
    if (++tries == 1) response->mutable_status()->set_code(14);
    return grpc::Status::OK;
  };
  ExpectAnswer(server_.NewClient(options_)->Attend(call_));
  EXPECT_EQ(tries, 2);
}

TEST_F(AttendTest, AnswerOfTheWrongSizeIsRefused) {
  server_.attention.on_attend = [](auto, const v1::AttentionRequest* request,
                                   v1::AttendResponse* response) {
    *response = Answer(*request);
    response->mutable_payload()->pop_back();
    return grpc::Status::OK;
  };
  const auto client = server_.NewClient();
  EXPECT_THAT(client->Attend(call_), StatusIs(absl::StatusCode::kInternal, {"679", "680"}));
  EXPECT_EQ(server_.models.num_gets, 1);
  EXPECT_THAT(client->Attend(call_), StatusIs(absl::StatusCode::kInternal, {"679", "680"}));
  EXPECT_EQ(server_.models.num_gets, 2) << "the model may be another by now";
}

TEST_F(AttendTest, ScoreJoinsChunks) {
  server_.attention.on_score = [](grpc::ServerWriter<v1::ScoreResponse>* writer) {
    const auto chunk = [&](uint32_t item, uint32_t begin, uint32_t count, size_t rows, bool last) {
      std::vector<float> logits;
      for (size_t row = 0; row < rows; ++row) {
        for (uint32_t t = begin; t < begin + count; ++t) logits.push_back(100.0f * row + t);
      }
      v1::ScoreResponse response;
      response.set_item(item);
      response.set_token_begin(begin);
      response.set_token_count(count);
      response.set_payload(logits.data(), logits.size() * sizeof(float));
      if (last) response.mutable_status()->set_code(0);
      writer->Write(response);
    };
    chunk(0, 3, 2, 4, false);
    chunk(1, 0, 1, 6, false);
    chunk(0, 5, 4, 4, true);
    return grpc::Status::OK;
  };
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const std::vector<ScoreOutput> outputs,
                                server_.NewClient()->Score(call_));
  EXPECT_EQ(outputs[0].token_begin, 3u);
  EXPECT_EQ(outputs[0].num_tokens, 6u);
  EXPECT_EQ(outputs[0].logits[1 * 6 + 0], 103);
  EXPECT_EQ(outputs[0].logits[3 * 6 + 5], 308);
  EXPECT_EQ(outputs[1].num_tokens, 1u);
}

TEST_F(AttendTest, ScoreThatEndsWithoutItsStatusIsNoAnswer) {
  server_.attention.on_score = [](grpc::ServerWriter<v1::ScoreResponse>*) {
    return grpc::Status::OK;
  };
  EXPECT_THAT(server_.NewClient()->Score(call_), StatusIs(absl::StatusCode::kInternal));
}

TEST_F(AttendTest, SessionKeepsOneStreamForCallsOfSeveralThreads) {
  server_.attention.on_stream = [](grpc::ServerContext*, AttendStreamRw* stream) {
    // Answers every second request first.
    v1::AttentionRequest request, held;
    while (stream->Read(&request)) {
      if (held.request_id() == 0) {
        held = request;
        continue;
      }
      stream->Write(Answer(request));
      stream->Write(Answer(held));
      held.Clear();
    }
    return grpc::Status::OK;
  };
  const auto client = server_.NewClient();
  const auto session = client->NewAttendSession();
  std::vector<std::thread> threads;
  for (int i = 0; i < 2; ++i) {
    threads.emplace_back([&] {
      for (int step = 0; step < 50; ++step) ExpectAnswer(session->Attend(call_));
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(server_.attention.num_streams, 1);
}

TEST_F(AttendTest, SessionOpensANewStreamAfterAnError) {
  server_.attention.on_stream = [this](grpc::ServerContext*, AttendStreamRw* stream) {
    v1::AttentionRequest request;
    for (int i = 0; stream->Read(&request); ++i) {
      if (i == 2 && server_.attention.num_streams < 3) {
        return grpc::Status(grpc::StatusCode::UNAVAILABLE, "draining");
      }
      stream->Write(Answer(request));
    }
    return grpc::Status::OK;
  };
  const auto client = server_.NewClient(options_);
  const auto session = client->NewAttendSession();
  for (int i = 0; i < 10; ++i) ExpectAnswer(session->Attend(call_));
  EXPECT_EQ(server_.attention.num_streams, 3);
}

TEST_F(AttendTest, SessionHoldsItsDeadlineAndGoesOn) {
  server_.attention.on_stream = [](grpc::ServerContext*, AttendStreamRw* stream) {
    v1::AttentionRequest request;
    for (int i = 0; stream->Read(&request); ++i) {
      if (i > 0) stream->Write(Answer(request));  // the first is never answered
    }
    return grpc::Status::OK;
  };
  options_.timeout = milliseconds(200);
  const auto client = server_.NewClient(options_);
  const auto session = client->NewAttendSession();
  const auto begin = steady_clock::now();
  EXPECT_THAT(session->Attend(call_), StatusIs(absl::StatusCode::kDeadlineExceeded));
  EXPECT_LT(steady_clock::now() - begin, milliseconds(2000));
  ExpectAnswer(session->Attend(call_));
  EXPECT_EQ(server_.attention.num_streams, 1);
}

TEST_F(AttendTest, SessionOutlivesItsClient) {
  auto client = server_.NewClient();
  SKETCHKV_ASSERT_OK(client->GetModel("small"));
  const auto session = client->NewAttendSession();
  client.reset();
  server_.attention.on_stream = [](grpc::ServerContext* context, AttendStreamRw*) {
    WaitUntilCancelled(context);
    return grpc::Status::OK;
  };
  EXPECT_THAT(session->Attend(call_), StatusIs(absl::StatusCode::kCancelled));
}

TEST_F(AttendTest, AsynchronousAttend) {
  server_.attention.on_attend = [](auto, const v1::AttentionRequest* request,
                                   v1::AttendResponse* response) {
    *response = Answer(*request);
    return grpc::Status::OK;
  };
  int num_done = 0;
  {
    const auto client = server_.NewClient();
    std::atomic<bool> done = false;
    client->AttendAsync(call_, [&](absl::StatusOr<std::vector<AttentionOutput>> outputs) {
      ExpectAnswer(outputs);
      ++num_done;
      done = true;
    });
    while (!done) std::this_thread::sleep_for(milliseconds(1));
  }
  EXPECT_EQ(num_done, 1);
}

}  // namespace
}  // namespace sketchkv
