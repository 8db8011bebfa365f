#include <gtest/gtest.h>

#include <map>

#include "tests/rpc/rpc_fixture.h"

namespace sketchkv {
namespace {

// Two blocks of 16 tokens, fp32 raw: the numbers in the store are those of the parts.
struct StoredChain {
  StoredChain() {
    model = f.Register("m", "raw");
    for (uint64_t hash = 1; hash <= 2; ++hash) {
      parts.push_back(RandomPart(*model, {}, 16, hash));
      f.PutOk("m", hash, hash - 1, parts.back());
    }
  }
  // Keys (or values) of one head over all tokens.
  std::vector<std::vector<double>> Rows(uint32_t layer, uint32_t head, bool keys) const {
    std::vector<std::vector<double>> rows;
    for (const RawPart& part : parts) {
      const RawPartFormat format(model->layout(), part.layout.range, 16, RawOrder::kNhd);
      const auto* base = reinterpret_cast<const std::byte*>(part.payload.data());
      const RowsView view =
          keys ? format.Keys(base, layer, head) : format.Values(base, layer, head);
      for (uint32_t t = 0; t < 16; ++t) {
        std::vector<float> row(keys ? 32 : 16);
        std::memcpy(row.data(), view.data + t * view.stride_bytes, row.size() * sizeof(float));
        rows.emplace_back(row.begin(), row.end());
      }
    }
    return rows;
  }
  // Two query heads a kv head, one query token, all heads of `layers`.
  v1::AttentionRequest Request(uint64_t id, std::vector<uint32_t> layers) {
    v1::AttentionRequest request;
    request.set_request_id(id);
    request.set_model("m");
    request.set_queries_per_kv_head(2);
    std::mt19937_64 random(id);
    std::normal_distribution<float> normal;
    std::vector<float> queries;
    for (const uint32_t layer : layers) {
      v1::AttentionItem* item = request.add_items();
      item->set_tip(HashBytes(2));
      item->set_layer(layer);
      item->set_num_query_tokens(1);
      for (int i = 0; i < 4 * 32; ++i) queries.push_back(normal(random));
    }
    request.set_queries(queries.data(), queries.size() * sizeof(float));
    return request;
  }
  // Checks the answer of Request(id, layers).
  void ExpectAnswer(const v1::AttentionRequest& request, const std::string& payload) {
    ASSERT_EQ(payload.size(), request.items_size() * 4 * (16 + 1) * sizeof(float));
    std::vector<float> answer(payload.size() / sizeof(float)),
        queries(request.queries().size() / 4);
    std::memcpy(answer.data(), payload.data(), payload.size());
    std::memcpy(queries.data(), request.queries().data(), request.queries().size());
    for (int i = 0; i < request.items_size(); ++i) {
      for (uint32_t head = 0; head < 4; ++head) {
        const float* row = queries.data() + (i * 4 + head) * 32;
        const DoubleAttention expected =
            AttendInDouble(Rows(request.items(i).layer(), head / 2, true),
                           Rows(request.items(i).layer(), head / 2, false),
                           std::vector<double>(row, row + 32), 1 / std::sqrt(32.0), 0, 16);
        const float* item = answer.data() + i * 4 * 17;
        for (int c = 0; c < 16; ++c) EXPECT_NEAR(item[head * 16 + c], expected.out[c], 1e-4);
        EXPECT_NEAR(item[4 * 16 + head], expected.lse, 1e-4);
      }
    }
  }

  RpcFixture f;
  std::shared_ptr<const Model> model;
  std::vector<RawPart> parts;
};

TEST(AttentionRpcTest, UnaryAttendAnswersABatchOfLayers) {
  StoredChain chain;
  const v1::AttentionRequest request = chain.Request(9, {1, 0});
  grpc::ClientContext call;
  v1::AttendResponse response;
  const grpc::Status status = chain.f.attention->Attend(&call, request, &response);
  ASSERT_TRUE(status.ok()) << status.error_message();
  chain.ExpectAnswer(request, response.payload());
}

TEST(AttentionRpcTest, StreamsAnswerEachItemWithItsOwnCode) {
  StoredChain chain;
  std::vector<v1::AttentionRequest> requests;
  for (uint64_t id = 1; id <= 20; ++id) requests.push_back(chain.Request(id, {0, 1}));
  requests[4].mutable_items(0)->set_tip(HashBytes(77));
  requests[5].mutable_queries()->resize(8);
  requests[6].set_model("nobody");
  grpc::ClientContext call;
  std::vector<v1::AttendResponse> responses;
  const auto stream = chain.f.attention->AttendStream(&call);
  ASSERT_TRUE(RpcFixture::Exchange(stream.get(), requests, &responses).ok());
  std::map<uint64_t, v1::AttendResponse> by_id;
  for (const auto& response : responses) by_id[response.request_id()] = response;
  ASSERT_EQ(by_id.size(), 20);
  for (const v1::AttentionRequest& request : requests) {
    const v1::AttendResponse& response = by_id[request.request_id()];
    switch (request.request_id()) {
      case 5:
        ExpectItem(response.status(), grpc::StatusCode::NOT_FOUND, {TestHash(77).ToHex()});
        break;
      case 6:
        ExpectItem(response.status(), grpc::StatusCode::INVALID_ARGUMENT,
                   {"queries has 8 bytes", "1024"});
        break;
      case 7:
        ExpectItem(response.status(), grpc::StatusCode::NOT_FOUND, {"nobody"});
        break;
      default:
        ASSERT_EQ(response.status().code(), 0) << response.status().message();
        chain.ExpectAnswer(request, response.payload());
    }
  }
}

TEST(AttentionRpcTest, ScoresComeInChunksOfTokens) {
  StoredChain chain;
  v1::AttentionRequest request = chain.Request(1, {0});
  request.mutable_items(0)->set_token_begin(3);
  request.mutable_items(0)->set_token_end(31);
  request.mutable_items(0)->set_softmax_scale(1.0f);
  grpc::ClientContext call;
  const auto stream = chain.f.attention->Score(&call, request);
  v1::ScoreResponse response;
  ASSERT_TRUE(stream->Read(&response));
  EXPECT_EQ(response.status().code(), 0);
  EXPECT_EQ(response.token_begin(), 3);
  EXPECT_EQ(response.token_count(), 28);
  std::vector<float> logits(4 * 28), queries(4 * 32);
  ASSERT_EQ(response.payload().size(), logits.size() * sizeof(float));
  std::memcpy(logits.data(), response.payload().data(), response.payload().size());
  std::memcpy(queries.data(), request.queries().data(), request.queries().size());
  for (uint32_t head = 0; head < 4; ++head) {
    const auto keys = chain.Rows(0, head / 2, true);
    for (uint32_t t = 0; t < 28; ++t) {
      double dot = 0;
      for (int c = 0; c < 32; ++c) dot += keys[t + 3][c] * queries[head * 32 + c];
      EXPECT_NEAR(logits[head * 28 + t], dot, 1e-3);
    }
  }
  EXPECT_FALSE(stream->Read(&response));
  EXPECT_TRUE(stream->Finish().ok());
}

// 4 heads over a context of several megabytes of logits, in two items.
// Without a deadline and without reading, a call would hold what it was admitted for ever.
TEST(AttentionRpcTest, ScoresThatNobodyReadsGiveBackWhatTheyHold) {
  RpcFixture f;
  v1::RegisterModelRequest tall = RpcFixture::ModelRequest("tall", "qjl");
  tall.mutable_layout()->set_block_tokens(1024);
  v1::Model registered;
  ASSERT_TRUE(f.Register(tall, &registered).ok());
  f.PutOk("tall", 1, 0, RandomPart(**f.registry.Get(0, "tall"), {}, 1024, 1));
  v1::AttentionRequest request;
  request.set_model("tall");
  request.set_queries_per_kv_head(128);
  v1::AttentionItem* item = request.add_items();
  item->set_tip(HashBytes(1));
  item->set_num_query_tokens(16);
  request.set_queries(std::string(size_t{16} * 256 * 32 * sizeof(float), 0));
  grpc::ClientContext call;
  const auto stream = f.attention->Score(&call, request);  // 16 MiB of logits in several messages
  v1::ScoreResponse response;
  ASSERT_TRUE(stream->Read(&response));
  f.writes.Sweep(f.clock.Now());
  EXPECT_GT(f.inflight.used(), 0) << "it still has time";
  // A sweep between two messages sees no write.
  for (int i = 0; i < 200 && f.inflight.used() > 0; ++i) {
    f.writes.Sweep(f.clock.Now() + 2 * f.context.max_timeout);
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }
  f.ExpectNothingInFlight();
  while (stream->Read(&response)) {
  }
  EXPECT_EQ(stream->Finish().error_code(), grpc::StatusCode::CANCELLED);
}

TEST(AttentionRpcTest, LongScoresComeInSeveralChunksThatJoin) {
  RpcFixture f;
  v1::RegisterModelRequest tall = RpcFixture::ModelRequest("tall", "qjl");
  tall.mutable_layout()->set_block_tokens(1024);
  v1::Model registered;
  ASSERT_TRUE(f.Register(tall, &registered).ok());
  const auto model = *f.registry.Get(0, "tall");
  f.PutOk("tall", 1, 0, RandomPart(*model, {}, 1024, 1));
  f.PutOk("tall", 2, 1, RandomPart(*model, {}, 700, 2));
  v1::AttentionRequest request;
  request.set_model("tall");
  request.set_queries_per_kv_head(128);
  std::vector<float> queries;
  for (const uint32_t layer : {0, 1}) {
    v1::AttentionItem* item = request.add_items();
    item->set_tip(HashBytes(2));
    item->set_layer(layer);
    item->set_num_query_tokens(3);
    for (int i = 0; i < 3 * 256 * 32; ++i) queries.push_back(0.01f * static_cast<float>(i % 97));
  }
  request.set_queries(queries.data(), queries.size() * sizeof(float));
  AttentionRequest direct{.model = model, .queries_per_kv_head = 128, .queries = queries};
  for (const uint32_t layer : {0, 1}) {
    AttentionItem item{.tip = TestHash(2), .layer = layer, .head_count = 2, .num_query_tokens = 3};
    item.options.softmax_scale = 1 / std::sqrt(32.0f);
    direct.items.push_back(item);
  }
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const auto expected, f.engine.Score(0, direct));

  grpc::ClientContext call;
  const auto stream = f.attention->Score(&call, request);
  size_t messages = 0;
  uint32_t next_token[2] = {0, 0};
  bool last = false;
  for (v1::ScoreResponse response; stream->Read(&response); ++messages) {
    ASSERT_FALSE(last) << "the status is on the last message only";
    last = response.has_status();
    ASSERT_LT(response.item(), 2);
    ASSERT_EQ(response.token_begin(), next_token[response.item()]);
    next_token[response.item()] += response.token_count();
    ASSERT_LE(response.payload().size(), kMaxChunkBytes);
    ASSERT_EQ(response.payload().size(), 768 * response.token_count() * sizeof(float));
    for (const uint32_t row : {0u, 401u, 767u}) {
      const float* logits =
          expected[response.item()].logits.data() + row * 1724 + response.token_begin();
      ASSERT_EQ(std::memcmp(logits,
                            response.payload().data() +
                                size_t{row} * response.token_count() * sizeof(float),
                            response.token_count() * sizeof(float)),
                0);
    }
  }
  EXPECT_TRUE(stream->Finish().ok());
  EXPECT_TRUE(last);
  EXPECT_GT(messages, 2);
  EXPECT_EQ(next_token[0], 1724);
  EXPECT_EQ(next_token[1], 1724);
  f.ExpectNothingInFlight();
}

TEST(AttentionRpcTest, WhatTheEngineMakesForAnAnswerIsAdmitted) {
  RpcFixture f({.inflight_bytes = 35000});
  const auto model = f.Register("m", "qjl");
  f.PutOk("m", 1, 0, RandomPart(*model, {}, 16, 1));
  v1::AttentionRequest request;
  request.set_request_id(1);
  request.set_model("m");
  request.set_queries_per_kv_head(64);
  v1::AttentionItem* item = request.add_items();
  item->set_tip(HashBytes(1));
  item->set_num_query_tokens(1);
  request.mutable_queries()->resize(128 * 32 * sizeof(float));  // 16,384 bytes
  const std::string needed = std::to_string(2 * 2 * (2 * 64 * (16 + 2) * 4 + 256));
  grpc::ClientContext attend_call, score_call, stream_call;
  v1::AttendResponse response;
  ExpectCall(f.attention->Attend(&attend_call, request, &response),
             grpc::StatusCode::RESOURCE_EXHAUSTED, {needed, "35000"});
  std::vector<v1::AttendResponse> responses;
  const auto stream = f.attention->AttendStream(&stream_call);
  ASSERT_TRUE(RpcFixture::Exchange(stream.get(), {request}, &responses).ok());
  ASSERT_EQ(responses.size(), 1);
  ExpectItem(responses[0].status(), grpc::StatusCode::RESOURCE_EXHAUSTED, {needed, "35000"});
  const auto scores =
      f.attention->Score(&score_call, request);  // 3 * 128 * 16 * 4 bytes and a little: fits
  v1::ScoreResponse score;
  EXPECT_TRUE(scores->Read(&score));
  EXPECT_FALSE(scores->Read(&score));
  EXPECT_TRUE(scores->Finish().ok());
  f.ExpectNothingInFlight();
}

TEST(AttentionRpcTest, AnswersLargerThanAMessageAreRefused) {
  RpcFixture f;
  v1::RegisterModelRequest narrow = RpcFixture::ModelRequest("narrow", "raw");
  narrow.mutable_layout()->set_head_dim(16);
  narrow.mutable_layout()->set_value_dim(128);
  v1::Model registered;
  ASSERT_TRUE(f.Register(narrow, &registered).ok());
  f.PutOk("narrow", 1, 0, RandomPart(**f.registry.Get(0, "narrow"), {}, 16, 1));
  v1::AttentionRequest request;
  request.set_model("narrow");
  request.set_queries_per_kv_head(64);
  v1::AttentionItem* item = request.add_items();
  item->set_tip(HashBytes(1));
  item->set_num_query_tokens(64);
  request.mutable_queries()->resize(64 * 128 * 16 * 4);
  grpc::ClientContext call;
  v1::AttendResponse response;
  ExpectCall(f.attention->Attend(&call, request, &response), grpc::StatusCode::INVALID_ARGUMENT,
             {std::to_string(64 * 128 * 129 * 4), std::to_string(kMaxChunkBytes)});
}

}  // namespace
}  // namespace sketchkv
