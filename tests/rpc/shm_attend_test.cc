// Attention whose queries and outputs lie in shared memory, without the SDK.

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>

#include "service/rpc/attention_call.h"
#include "tests/rpc/rpc_fixture.h"

namespace sketchkv {
namespace {

constexpr uint64_t kSegmentBytes = uint64_t{1} << 20;
constexpr uint64_t kQueriesAt = 4096;
constexpr uint64_t kOutputsAt = 65536;
constexpr uint64_t kQueryBytes = 3 * 4 * 32 * sizeof(float);   // of Request()
constexpr uint64_t kOutputBytes = 3 * 4 * 17 * sizeof(float);  // of its answer

// Two blocks of 16 tokens and a segment whose guard, at 0, is 7.
struct SharedAttend : RpcFixture {
  explicit SharedAttend(const Options& options = Options())
      : RpcFixture(options),
        segments({.client_bytes = kSegmentBytes, .total_bytes = kSegmentBytes}) {
    context.segments = &segments;
    const auto added = segments.Add(kSegmentBytes);
    token.assign(added->token.begin(), added->token.end());
    segment = added->segment;
    SetGuard(7);
    const auto model = Register("m", "qjl3p");
    for (uint64_t hash = 1; hash <= 2; ++hash) {
      PutOk("m", hash, hash - 1, RandomPart(*model, {}, 16, hash));
    }
  }
  void SetGuard(uint64_t guard) { std::memcpy(segment->View(0, 8)->data(), &guard, sizeof(guard)); }
  std::byte* At(uint64_t offset) { return segment->View(offset, 1)->data(); }
  void FillRef(uint64_t offset, uint64_t length, v1::SegmentRef* ref) const {
    ref->set_token(token);
    ref->set_offset(offset);
    ref->set_length(length);
    ref->set_guard_offset(0);
    ref->set_guard(7);
  }
  // Items of 2 and of 1 query tokens, two query heads a kv head.
  static v1::AttentionRequest Request(uint64_t id = 1) {
    v1::AttentionRequest request;
    request.set_request_id(id);
    request.set_model("m");
    request.set_queries_per_kv_head(2);
    for (uint32_t layer = 0; layer < 2; ++layer) {
      v1::AttentionItem* item = request.add_items();
      item->set_tip(HashBytes(2));
      item->set_layer(layer);
      item->set_num_query_tokens(2 - layer);
    }
    std::mt19937_64 random(id);
    std::normal_distribution<float> normal;
    std::vector<float> queries(kQueryBytes / sizeof(float));
    for (float& query : queries) query = normal(random);
    request.set_queries(queries.data(), kQueryBytes);
    return request;
  }
  // The same with queries and outputs in the segment.
  v1::AttentionRequest Shared(uint64_t id = 1) {
    v1::AttentionRequest request = Request(id);
    std::memcpy(At(kQueriesAt), request.queries().data(), kQueryBytes);
    request.clear_queries();
    FillRef(kQueriesAt, kQueryBytes, request.mutable_queries_segment());
    FillRef(kOutputsAt, kOutputBytes, request.mutable_outputs_segment());
    return request;
  }
  grpc::Status Attend(const v1::AttentionRequest& request, v1::AttendResponse* response) {
    grpc::ClientContext call;
    SetDeadline(&call);
    return attention->Attend(&call, request, response);
  }
  void ExpectRefused(const v1::AttentionRequest& request, grpc::StatusCode code,
                     const std::vector<std::string>& parts) {
    std::memset(At(kOutputsAt), 0x5a, kOutputBytes);
    v1::AttendResponse response;
    ExpectCall(Attend(request, &response), code, parts);
    EXPECT_EQ(*At(kOutputsAt), std::byte{0x5a}) << "nothing is written";
    ExpectNothingInFlight();
  }

  SegmentTable segments;
  std::string token;
  std::shared_ptr<Segment> segment;
};

TEST(ShmAttendTest, WritesTheBytesThatWouldTravelAndNoOthers) {
  SharedAttend f;
  v1::AttendResponse travelled, shared;
  ASSERT_TRUE(f.Attend(SharedAttend::Request(), &travelled).ok());
  ASSERT_EQ(travelled.payload().size(), kOutputBytes);
  std::memset(f.At(0), 0x5a, kSegmentBytes);
  f.SetGuard(7);
  v1::AttentionRequest request = f.Shared();
  request.mutable_outputs_segment()->set_length(kOutputBytes + 4);  // more than it takes
  const grpc::Status status = f.Attend(request, &shared);
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_TRUE(shared.payload().empty());
  EXPECT_EQ(std::memcmp(f.At(kOutputsAt), travelled.payload().data(), kOutputBytes), 0);
  EXPECT_EQ(*f.At(kOutputsAt - 1), std::byte{0x5a});
  EXPECT_EQ(*f.At(kOutputsAt + kOutputBytes), std::byte{0x5a});
  // Either of the two alone.
  request = f.Shared();
  request.clear_outputs_segment();
  ASSERT_TRUE(f.Attend(request, &shared).ok());
  EXPECT_EQ(shared.payload(), travelled.payload());
  request = SharedAttend::Request();
  *request.mutable_outputs_segment() = f.Shared().outputs_segment();
  std::memset(f.At(kOutputsAt), 0, kOutputBytes);
  ASSERT_TRUE(f.Attend(request, &shared).ok());
  EXPECT_EQ(std::memcmp(f.At(kOutputsAt), travelled.payload().data(), kOutputBytes), 0);
  f.ExpectNothingInFlight();
}

TEST(ShmAttendTest, StreamsDoTheSame) {
  SharedAttend f;
  v1::AttendResponse travelled;
  ASSERT_TRUE(f.Attend(SharedAttend::Request(), &travelled).ok());
  v1::AttentionRequest bad = f.Shared(2);
  bad.mutable_outputs_segment()->set_offset(kSegmentBytes);
  v1::AttentionRequest both = SharedAttend::Request(3);
  *both.mutable_queries_segment() = bad.queries_segment();
  const v1::AttentionRequest good = f.Shared(1);
  grpc::ClientContext call;
  SharedAttend::SetDeadline(&call);
  const auto stream = f.attention->AttendStream(&call);
  std::vector<v1::AttendResponse> responses;
  ASSERT_TRUE(RpcFixture::Exchange(stream.get(), {good, bad, both}, &responses).ok());
  ASSERT_EQ(responses.size(), 3);
  for (const v1::AttendResponse& response : responses) {
    EXPECT_TRUE(response.payload().empty());
    if (response.request_id() == 1) {
      EXPECT_EQ(response.status().code(), 0) << response.status().message();
      EXPECT_EQ(std::memcmp(f.At(kOutputsAt), travelled.payload().data(), kOutputBytes), 0);
    } else if (response.request_id() == 2) {
      ExpectItem(response.status(), grpc::StatusCode::INVALID_ARGUMENT,
                 {"outputs_segment", std::to_string(kSegmentBytes)});
    } else {
      ExpectItem(response.status(), grpc::StatusCode::INVALID_ARGUMENT,
                 {"queries has", std::to_string(kQueryBytes), "queries_segment"});
    }
  }
  f.ExpectNothingInFlight();
}

TEST(ShmAttendTest, BytesOutsideTheSegmentAndOfTheWrongSizeAreRefused) {
  SharedAttend f;
  const std::string size = std::to_string(kSegmentBytes);
  const auto refused = [&](const auto& change, const std::vector<std::string>& parts) {
    v1::AttentionRequest request = f.Shared();
    change(&request);
    f.ExpectRefused(request, grpc::StatusCode::INVALID_ARGUMENT, parts);
  };
  const uint64_t over = kSegmentBytes - kQueryBytes + 4;
  refused([&](auto* r) { r->mutable_queries_segment()->set_offset(over); },
          {"queries_segment", std::to_string(over), size});
  refused([&](auto* r) { r->mutable_queries_segment()->set_offset(~uint64_t{0}); },
          {"queries_segment", size});
  refused([&](auto* r) { r->mutable_outputs_segment()->set_offset(kSegmentBytes - 4); },
          {"outputs_segment", std::to_string(kSegmentBytes - 4), size});
  refused(
      [&](auto* r) { r->mutable_outputs_segment()->set_length(kOutputBytes - 4); },
      {"outputs_segment.length", std::to_string(kOutputBytes - 4), std::to_string(kOutputBytes)});
  refused([&](auto* r) { r->mutable_outputs_segment()->set_offset(kOutputsAt + 2); },
          {"outputs_segment.offset", std::to_string(kOutputsAt + 2), "multiple of 4"});
  refused([&](auto* r) { r->mutable_queries_segment()->set_length(kQueryBytes - 4); },
          {"queries", std::to_string(kQueryBytes - 4), std::to_string(kQueryBytes)});
  refused([&](auto* r) { r->mutable_queries_segment()->set_length(kQueryBytes - 1); },
          {"queries_segment.length", std::to_string(kQueryBytes - 1), "multiple of 4"});
  refused([&](auto* r) { r->mutable_queries_segment()->set_guard_offset(kSegmentBytes); },
          {"guard_offset", size});
  refused([&](auto* r) { r->mutable_outputs_segment()->set_guard_offset(4); },
          {"guard_offset is 4", size});
  refused([&](auto* r) { r->set_queries("four"); }, {"queries has 4", "queries_segment"});
  refused(
      [&](auto*) {
        const float infinity = std::numeric_limits<float>::infinity();
        std::memcpy(f.At(kQueriesAt + 33 * sizeof(float)), &infinity, sizeof(infinity));
      },
      {"queries has inf at row 1, channel 1"});
}

TEST(ShmAttendTest, UnknownSegmentsAreUnavailable) {
  SharedAttend f;
  v1::AttentionRequest request = f.Shared();
  (*request.mutable_queries_segment()->mutable_token())[3] ^= 1;
  f.ExpectRefused(request, grpc::StatusCode::UNAVAILABLE, {"queries_segment"});
  request = f.Shared();
  (*request.mutable_outputs_segment()->mutable_token())[3] ^= 1;
  f.ExpectRefused(request, grpc::StatusCode::UNAVAILABLE, {"outputs_segment"});
  f.context.segments = nullptr;
  f.ExpectRefused(f.Shared(), grpc::StatusCode::UNAVAILABLE, {"shares no memory"});
}

TEST(ShmAttendTest, ScoresDoNotGoToASegmentButTheirQueriesMayLieInOne) {
  SharedAttend f;
  const auto score = [&](const v1::AttentionRequest& request, std::string* logits) {
    grpc::ClientContext call;
    SharedAttend::SetDeadline(&call);
    const auto stream = f.attention->Score(&call, request);
    for (v1::ScoreResponse response; stream->Read(&response);) *logits += response.payload();
    return stream->Finish();
  };
  std::string travelled, shared;
  ExpectCall(score(f.Shared(), &shared), grpc::StatusCode::INVALID_ARGUMENT, {"outputs_segment"});
  v1::AttentionRequest request = f.Shared();
  request.clear_outputs_segment();
  ASSERT_TRUE(score(request, &shared).ok());
  ASSERT_TRUE(score(SharedAttend::Request(), &travelled).ok());
  EXPECT_EQ(shared, travelled);
  f.ExpectNothingInFlight();
}

TEST(ShmAttendTest, QueriesTakenBackAreNotAttended) {
  SharedAttend f;
  const v1::AttentionRequest request = f.Shared();
  f.SetGuard(8);
  f.ExpectRefused(request, grpc::StatusCode::CANCELLED, {"7", "8"});
}

TEST(ShmAttendTest, OutputsTakenBackAreNotWritten) {
  SharedAttend f;
  // The guard changes while the engine runs: after the request was read, before its answer is
  // there.
  const v1::AttentionRequest request = f.Shared();
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const auto call,
                                ParseAttentionCall(f.context, request, TimePoint::max(), nullptr));
  f.SetGuard(8);
  std::memset(f.At(kOutputsAt), 0x5a, kOutputBytes);
  std::string payload;
  EXPECT_THAT(RunAttend(f.context, *call, &payload),
              StatusIs(absl::StatusCode::kCancelled, {"7", "8"}));
  EXPECT_TRUE(payload.empty());
  EXPECT_EQ(*f.At(kOutputsAt), std::byte{0x5a});
  f.SetGuard(7);
  SKETCHKV_EXPECT_OK(RunAttend(f.context, *call, &payload));
  EXPECT_NE(*f.At(kOutputsAt), std::byte{0x5a});
}

// A client may write while the server reads: what was checked is what is used.
TEST(ShmAttendTest, QueriesWrittenToAfterTheyWereReadDoNotCount) {
  SharedAttend f;
  v1::AttendResponse travelled;
  ASSERT_TRUE(f.Attend(SharedAttend::Request(), &travelled).ok());
  const v1::AttentionRequest request = f.Shared();
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const auto call,
                                ParseAttentionCall(f.context, request, TimePoint::max(), nullptr));
  const std::vector<float> nans(kQueryBytes / sizeof(float), std::nanf(""));
  std::memcpy(f.At(kQueriesAt), nans.data(), kQueryBytes);
  std::string payload;
  SKETCHKV_EXPECT_OK(RunAttend(f.context, *call, &payload));
  EXPECT_EQ(std::memcmp(f.At(kOutputsAt), travelled.payload().data(), kOutputBytes), 0);
}

TEST(ShmAttendTest, QueriesInASegmentAreAdmittedBeforeTheyAreCopied) {
  SharedAttend f({.inflight_bytes = 100000});
  v1::AttentionRequest request = f.Shared();
  f.FillRef(4096, 200000, request.mutable_queries_segment());
  f.ExpectRefused(request, grpc::StatusCode::RESOURCE_EXHAUSTED, {"200000", "100000"});
}

}  // namespace
}  // namespace sketchkv
