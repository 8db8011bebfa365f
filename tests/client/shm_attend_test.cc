// Attention over shared memory: the SDK against a real server process and against a fake one.

#include <gtest/gtest.h>

#include <cstring>
#include <random>

#include "service/shm/segment_listener.h"
#include "tests/client/fake_server.h"
#include "tests/testing/server_process.h"
#include "tests/testing/status_matchers.h"

namespace sketchkv {
namespace {

using std::chrono::milliseconds;

constexpr uint64_t kMiB = uint64_t{1} << 20;

std::string SocketPath() {
  return ::testing::TempDir() + "/sketchkv_attend" + std::to_string(getpid()) + ".sock";
}

std::vector<float> RandomFloats(size_t count) {
  std::mt19937_64 random(1);
  std::normal_distribution<float> normal;
  std::vector<float> floats(count);
  for (float& number : floats) number = normal(random);
  return floats;
}

// One block of model "m" (4 kv heads, d = 128), and calls of `sequences` items that all attend it
// with 16 query heads.
struct StoredBlock {
  StoredBlock() : server({"--shm-socket", SocketPath()}), plain(Connect(0)) {
    const CacheLayout layout = {.num_layers = 1,
                                .num_kv_heads = 4,
                                .head_dim = 128,
                                .value_dim = 128,
                                .block_tokens = 64,
                                .key_type = ElementType::kFp32,
                                .value_type = ElementType::kFp32};
    EXPECT_THAT(plain->RegisterModel("m", layout, {}), IsOk());
    const std::vector<float> numbers = RandomFloats(size_t{2} * 4 * 64 * 128);
    PutPart part;
    part.model = "m";
    part.block_hash = BlockId(16, 'b');
    part.num_tokens = 64;
    part.payload = std::as_bytes(std::span(numbers));
    EXPECT_THAT(plain->Put(part), IsOk());
  }
  std::unique_ptr<Client> Connect(uint64_t shared_bytes) const {
    return *Client::Create({.target = server.target(),
                            .timeout = milliseconds(30000),
                            .shared_memory_bytes = shared_bytes});
  }
  AttentionCall Call(size_t sequences) {
    AttentionCall call;
    call.model = "m";
    call.queries_per_kv_head = 4;
    call.items.resize(sequences);
    for (size_t i = 0; i < sequences; ++i) {
      call.items[i].tip = BlockId(16, 'b');
      call.items[i].token_begin = static_cast<uint32_t>(i);
    }
    queries = RandomFloats(sequences * 16 * 128);
    call.queries = queries;
    return call;
  }

  ServerProcess server;
  std::unique_ptr<Client> plain;  // shares no memory
  std::vector<float> queries;
};

void ExpectSame(const absl::StatusOr<std::vector<AttentionOutput>>& got,
                const std::vector<AttentionOutput>& want, Transport transport) {
  SKETCHKV_ASSERT_OK(got);
  ASSERT_EQ(got->size(), want.size());
  for (size_t i = 0; i < want.size(); ++i) {
    EXPECT_EQ((*got)[i].transport, transport);
    EXPECT_EQ((*got)[i].out, want[i].out);
    EXPECT_EQ((*got)[i].lse, want[i].lse);
  }
}

TEST(ClientShmAttendTest, LargeCallsGoOverSharedMemoryAndAnswerTheSame) {
  StoredBlock f;
  const auto client = f.Connect(8 * kMiB);
  AttentionCall call = f.Call(16);
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const auto want, f.plain->Attend(call));
  ExpectSame(want, want, Transport::kGrpc);
  ExpectSame(client->Attend(call), want, Transport::kSharedMemory);
  const auto session = client->NewAttendSession();
  for (int i = 0; i < 3; ++i) ExpectSame(session->Attend(call), want, Transport::kSharedMemory);
  std::atomic<bool> done = false;
  client->AttendAsync(call, [&](absl::StatusOr<std::vector<AttentionOutput>> outputs) {
    ExpectSame(outputs, want, Transport::kSharedMemory);
    done = true;
  });
  while (!done) std::this_thread::sleep_for(milliseconds(1));
  // Queries that lie in the segment already.
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const SharedBuffer buffer,
                                client->AllocateShared(call.queries.size_bytes()));
  std::memcpy(buffer.bytes().data(), call.queries.data(), call.queries.size_bytes());
  call.queries = {reinterpret_cast<const float*>(buffer.bytes().data()), call.queries.size()};
  ExpectSame(client->Attend(call), want, Transport::kSharedMemory);
  // Errors are those of the server.
  call.items[1].tip = BlockId(16, 'x');
  EXPECT_THAT(client->Attend(call), StatusIs(absl::StatusCode::kNotFound, {"items[1]"}));
  EXPECT_THAT(session->Attend(call), StatusIs(absl::StatusCode::kNotFound, {"items[1]"}));
}

TEST(ClientShmAttendTest, SmallCallsAndThoseWithoutRoomGoOverGrpc) {
  StoredBlock f;
  AttentionCall call = f.Call(1);
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const auto want, f.plain->Attend(call));
  const auto client = f.Connect(kMiB / 2);
  EXPECT_EQ(client->transport(), Transport::kSharedMemory);
  ExpectSame(client->Attend(call), want, Transport::kGrpc);
  {
    SKETCHKV_ASSERT_OK_AND_ASSIGN(const SharedBuffer buffer, client->AllocateShared(16 * 128 * 4));
    std::memcpy(buffer.bytes().data(), call.queries.data(), call.queries.size_bytes());
    call.queries = {reinterpret_cast<const float*>(buffer.bytes().data()), call.queries.size()};
    ExpectSame(client->Attend(call), want, Transport::kSharedMemory);
  }
  call = f.Call(16);
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const auto large, f.plain->Attend(call));
  ExpectSame(client->Attend(call), large, Transport::kSharedMemory);
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const SharedBuffer rest,
                                client->AllocateShared(kMiB / 2 - 128 * 1024));
  ExpectSame(client->Attend(call), large, Transport::kGrpc);
}

// A server whose attention answers as the test says, and shares memory.
struct FakeSharing : FakeServer {
  FakeSharing()
      : table({.client_bytes = 2 * kMiB, .total_bytes = 8 * kMiB}),
        listener(*SegmentListener::Start(SocketPath(), &table)) {
    cache.stats.set_shm_socket(listener->path());
    cache.stats.set_shm_server(listener->server().data(), listener->server().size());
    call.model = "small";
    call.queries_per_kv_head = 128;
    call.items.resize(1);
    call.items[0].tip = BlockId(32, 't');
    call.items[0].num_query_tokens = 8;
    queries = RandomFloats(size_t{8} * 256 * 16);
    call.queries = queries;
  }
  // What the segment holds of `ref`, as the server sees it.
  std::span<std::byte> View(const v1::SegmentRef& ref) const {
    return *(*table.Find(ref.token()))->View(ref.offset(), ref.length());
  }
  bool GuardHolds(const v1::SegmentRef& ref) const {
    const auto segment = table.Find(ref.token());
    return segment.ok() && *(*segment)->Load(ref.guard_offset()) == ref.guard();
  }

  SegmentTable table;
  std::unique_ptr<SegmentListener> listener;
  std::vector<float> queries;
  AttentionCall call;
};

TEST(ClientShmAttendTest, RequestsNameTheQueriesAndRoomForExactlyTheOutputs) {
  FakeSharing f;
  v1::AttentionRequest sent;
  f.attention.on_attend = [&](auto, const v1::AttentionRequest* request, v1::AttendResponse*) {
    sent = *request;
    EXPECT_EQ(request->queries_segment().length(), f.queries.size() * sizeof(float));
    EXPECT_EQ(request->outputs_segment().length(), 8 * 256 * 17 * sizeof(float));
    EXPECT_TRUE(f.GuardHolds(request->queries_segment()));
    EXPECT_TRUE(f.GuardHolds(request->outputs_segment()));
    const auto seen = f.View(request->queries_segment());
    EXPECT_EQ(std::memcmp(seen.data(), f.queries.data(), seen.size()), 0);
    std::vector<float> outputs(size_t{8} * 256 * 17, 0.5f);
    std::memcpy(f.View(request->outputs_segment()).data(), outputs.data(),
                outputs.size() * sizeof(float));
    return grpc::Status::OK;
  };
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const auto outputs, f.NewClient()->Attend(f.call));
  EXPECT_TRUE(sent.queries().empty());
  EXPECT_EQ(outputs[0].out, std::vector<float>(size_t{8} * 256 * 16, 0.5f));
  EXPECT_EQ(outputs[0].lse, std::vector<float>(size_t{8} * 256, 0.5f));
  // An answer that travels all the same is another server's idea of the request.
  f.attention.on_attend = [](auto, auto, v1::AttendResponse* response) {
    response->set_payload("what?");
    return grpc::Status::OK;
  };
  EXPECT_THAT(f.NewClient()->Attend(f.call), StatusIs(absl::StatusCode::kInternal, {"5", "0"}));
}

TEST(ClientShmAttendTest, ASegmentThatTheServerMayStillWriteToIsNotUsedAgain) {
  FakeSharing f;
  ClientOptions options;
  options.timeout = milliseconds(300);
  options.retry_pause = milliseconds(1);
  const auto client = f.NewClient(options);
  std::vector<v1::AttentionRequest> sent;
  f.attention.on_attend = [&](grpc::ServerContext* context, const v1::AttentionRequest* request,
                              v1::AttendResponse*) {
    sent.push_back(*request);
    switch (sent.size()) {
      case 1:
        return grpc::Status(grpc::StatusCode::INVALID_ARGUMENT, "the server is done with it");
      case 2:
        WaitUntilCancelled(context);
        for (int i = 0; i < 10000 && f.GuardHolds(request->outputs_segment()); ++i) {
          std::this_thread::sleep_for(milliseconds(1));
        }
        EXPECT_FALSE(f.GuardHolds(request->outputs_segment())) << "it was not taken back";
        return grpc::Status::CANCELLED;
      default:
        return grpc::Status::OK;
    }
  };
  EXPECT_THAT(client->Attend(f.call), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(client->Attend(f.call), StatusIs(absl::StatusCode::kDeadlineExceeded));
  SKETCHKV_EXPECT_OK(client->Attend(f.call));
  ASSERT_EQ(sent.size(), 3);
  EXPECT_EQ(sent[0].outputs_segment().token(), sent[1].outputs_segment().token());
  EXPECT_NE(sent[1].outputs_segment().token(), sent[2].outputs_segment().token());
}

TEST(ClientShmAttendTest, ASessionWhoseStreamBreaksTakesAnotherSegmentToo) {
  FakeSharing f;
  ClientOptions options;
  options.retry_pause = milliseconds(1);
  const auto client = f.NewClient(options);
  std::vector<std::string> tokens;
  f.attention.on_stream = [&](grpc::ServerContext*, AttendStreamRw* stream) {
    v1::AttentionRequest request;
    while (stream->Read(&request)) {
      tokens.push_back(request.outputs_segment().token());
      if (tokens.size() == 2) return grpc::Status(grpc::StatusCode::UNAVAILABLE, "draining");
      v1::AttendResponse response;
      response.set_request_id(request.request_id());
      response.mutable_status()->set_code(0);
      stream->Write(response);
    }
    return grpc::Status::OK;
  };
  const auto session = client->NewAttendSession();
  for (int i = 0; i < 3; ++i) SKETCHKV_EXPECT_OK(session->Attend(f.call));
  ASSERT_EQ(tokens.size(), 4);  // the second was tried twice
  EXPECT_EQ(tokens[0], tokens[1]);
  EXPECT_NE(tokens[1], tokens[2]);
  EXPECT_EQ(tokens[2], tokens[3]);
}

}  // namespace
}  // namespace sketchkv
