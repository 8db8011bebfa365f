// Puts from, gets into and attention in a worker's memory on the card, without the SDK. The card is
// a fake, and its memory the host's.

#include <gtest/gtest.h>

#include <cstring>
#include <map>
#include <random>

#include "tests/rpc/rpc_fixture.h"
#include "tests/testing/fake_gpu.h"

namespace sketchkv {
namespace {

using Code = grpc::StatusCode;

constexpr size_t kAllocationBytes = size_t{1} << 20;
constexpr uint64_t kPayloadAt = 4096;
constexpr uint64_t kQueriesAt = 256 << 10;
constexpr uint64_t kOutputsAt = 512 << 10;
constexpr uint64_t kQueryBytes = 2 * 4 * 32 * sizeof(float);   // of Request()
constexpr uint64_t kOutputBytes = 2 * 4 * 17 * sizeof(float);  // of its answer

struct Card {
  testing::FakeGpu gpu{size_t{1} << 20};
};

// A server with a card, and a worker's allocation on it.
struct GpuFixture : Card, RpcFixture {
  explicit GpuFixture(uint64_t inflight_bytes = uint64_t{256} << 20)
      : RpcFixture({.inflight_bytes = inflight_bytes, .gpu = &gpu}),
        allocation(kAllocationBytes, std::byte{0x5a}) {
    GpuIpcHandle bytes{};
    bytes[0] = 7;
    gpu.Share(bytes, allocation);
    handle.assign(bytes.begin(), bytes.end());
  }
  ~GpuFixture() {
    EXPECT_EQ(gpu.num_open(), 0) << "a worker's memory is still held";
    ExpectNothingInFlight();
    ExpectNothingPinned();
  }

  std::byte* At(uint64_t offset) { return allocation.data() + offset; }
  v1::GpuMemoryRef Ref(uint64_t offset, uint64_t length) const {
    v1::GpuMemoryRef ref;
    ref.set_ipc_handle(handle);
    ref.set_offset(offset);
    ref.set_length(length);
    return ref;
  }
  v1::PutRequest PutFromGpu(uint64_t hash, const RawPart& part, uint64_t parent = 0) {
    std::memcpy(At(kPayloadAt), part.payload.data(), part.payload.size());
    v1::PutRequest request = PutMessages(1, "m", hash, parent, part, part.payload.size())[0];
    request.clear_payload();
    request.set_checksum(1);  // which nobody looks at
    *request.mutable_header()->mutable_gpu_memory() = Ref(kPayloadAt, part.payload.size());
    return request;
  }
  // The same with one number for the item and its block.
  v1::PutRequest PutAs(uint64_t id, const RawPart& part) {
    v1::PutRequest request = PutFromGpu(id, part);
    request.set_request_id(id);
    return request;
  }
  v1::PutResponse PutOne(const v1::PutRequest& request) {
    const auto responses = Put({request});
    EXPECT_EQ(responses.size(), 1);
    return responses.empty() ? v1::PutResponse() : responses[0];
  }
  // Blocks 1 and 2, the second of them the child of the first.
  void PutChain() {
    const auto model = Register("m", "qjl3p");
    for (uint64_t hash = 1; hash <= 2; ++hash) {
      const v1::PutResponse put =
          PutOne(PutFromGpu(hash, RandomPart(*model, {}, 16, hash), hash - 1));
      ASSERT_EQ(put.status().code(), 0) << put.status().message();
      EXPECT_TRUE(put.sealed());
    }
  }
  static v1::GetRequest DecodedRequest(uint64_t hash) {
    v1::GetRequest request = GetRequestFor(1, "m", hash);
    request.mutable_format()->set_dtype(v1::DTYPE_BF16);
    request.mutable_format()->set_raw_order(v1::RAW_ORDER_NHD);
    return request;
  }
  // One layer, 2 query tokens, two query heads a kv head.
  static v1::AttentionRequest Request() {
    v1::AttentionRequest request;
    request.set_request_id(1);
    request.set_model("m");
    request.set_queries_per_kv_head(2);
    v1::AttentionItem* item = request.add_items();
    item->set_tip(HashBytes(2));
    item->set_layer(1);
    item->set_num_query_tokens(2);
    std::mt19937_64 random(1);
    std::normal_distribution<float> normal;
    std::vector<float> queries(kQueryBytes / sizeof(float));
    for (float& query : queries) query = normal(random);
    request.set_queries(queries.data(), kQueryBytes);
    return request;
  }
  v1::AttentionRequest RequestOnGpu() {
    v1::AttentionRequest request = Request();
    std::memcpy(At(kQueriesAt), request.queries().data(), kQueryBytes);
    request.clear_queries();
    *request.mutable_queries_gpu_memory() = Ref(kQueriesAt, kQueryBytes);
    *request.mutable_outputs_gpu_memory() = Ref(kOutputsAt, kOutputBytes);
    return request;
  }
  grpc::Status Attend(const v1::AttentionRequest& request, v1::AttendResponse* response) {
    grpc::ClientContext call;
    SetDeadline(&call);
    return attention->Attend(&call, request, response);
  }
  void ExpectRefused(const v1::AttentionRequest& request, Code code,
                     const std::vector<std::string>& parts) {
    v1::AttendResponse response;
    ExpectCall(Attend(request, &response), code, parts);
    EXPECT_EQ(*At(kOutputsAt), std::byte{0x5a}) << "nothing is written";
  }
  grpc::Status Score(const v1::AttentionRequest& request, std::string* logits) {
    grpc::ClientContext call;
    SetDeadline(&call);
    const auto stream = attention->Score(&call, request);
    for (v1::ScoreResponse response; stream->Read(&response);) *logits += response.payload();
    return stream->Finish();
  }

  std::vector<std::byte> allocation;
  std::string handle;
};

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

TEST(GpuMemoryRpcTest, PutsFromTheCardStoreWhatPutsOverGrpcStore) {
  GpuFixture f;
  const auto model = f.Register("m", "qjl3p");
  const RawPart part = RandomPart(*model, {}, 16, 1);
  f.PutOk("m", 1, 0, part);
  const v1::PutResponse put = f.PutOne(f.PutFromGpu(2, part));
  EXPECT_EQ(put.status().code(), 0) << put.status().message();
  EXPECT_TRUE(put.sealed());
  EXPECT_EQ(f.gpu.encodes, 1);
  const auto want = f.Get({RpcFixture::GetRequestFor(1, "m", 1)});
  const auto got = f.Get({RpcFixture::GetRequestFor(1, "m", 2)});
  EXPECT_EQ(got[0].payload(), want[0].payload());
  EXPECT_FALSE(got[0].payload().empty());
}

TEST(GpuMemoryRpcTest, GetsIntoTheCardWriteWhatWouldTravelAndNothingElse) {
  GpuFixture f;
  f.PutChain();
  v1::GetRequest request = GpuFixture::DecodedRequest(2);
  const std::string want = f.Get({request})[0].payload();
  std::fill(f.allocation.begin(), f.allocation.end(), std::byte{0x5a});
  *request.mutable_gpu_memory() = f.Ref(kPayloadAt, want.size() + 100);
  const auto responses = f.Get({request});
  ASSERT_EQ(responses.size(), 1);
  EXPECT_EQ(responses[0].status().code(), 0) << responses[0].status().message();
  EXPECT_EQ(responses[0].part().num_tokens(), 16);
  EXPECT_TRUE(responses[0].payload().empty());
  EXPECT_EQ(std::memcmp(f.At(kPayloadAt), want.data(), want.size()), 0);
  EXPECT_EQ(*f.At(kPayloadAt - 1), std::byte{0x5a});
  EXPECT_EQ(*f.At(kPayloadAt + want.size()), std::byte{0x5a});

  request.mutable_gpu_memory()->set_length(want.size() - 1);
  ExpectItem(f.Get({request})[0].status(), Code::INVALID_ARGUMENT,
             {"gpu_memory.length", std::to_string(want.size() - 1), std::to_string(want.size())});
  request.clear_format();
  ExpectItem(f.Get({request})[0].status(), Code::INVALID_ARGUMENT, {"gpu_memory", "format"});
}

TEST(GpuMemoryRpcTest, AttentionOnTheCardWritesWhatWouldTravelAndNothingElse) {
  GpuFixture f;
  f.PutChain();
  v1::AttendResponse travelled, on_gpu;
  ASSERT_TRUE(f.Attend(GpuFixture::Request(), &travelled).ok());
  ASSERT_EQ(travelled.payload().size(), kOutputBytes);
  v1::AttentionRequest request = f.RequestOnGpu();
  request.mutable_outputs_gpu_memory()->set_length(kOutputBytes + 16);  // more than it takes
  const grpc::Status status = f.Attend(request, &on_gpu);
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_TRUE(on_gpu.payload().empty());
  EXPECT_EQ(f.gpu.attentions_in_place, 1);
  EXPECT_EQ(std::memcmp(f.At(kOutputsAt), travelled.payload().data(), kOutputBytes), 0);
  EXPECT_EQ(*f.At(kOutputsAt - 1), std::byte{0x5a});
  EXPECT_EQ(*f.At(kOutputsAt + kOutputBytes), std::byte{0x5a});
  // Either of the two alone.
  request = f.RequestOnGpu();
  request.clear_outputs_gpu_memory();
  ASSERT_TRUE(f.Attend(request, &on_gpu).ok());
  EXPECT_EQ(on_gpu.payload(), travelled.payload());
  request = GpuFixture::Request();
  *request.mutable_outputs_gpu_memory() = f.Ref(kOutputsAt, kOutputBytes);
  std::memset(f.At(kOutputsAt), 0, kOutputBytes);
  ASSERT_TRUE(f.Attend(request, &on_gpu).ok());
  EXPECT_EQ(std::memcmp(f.At(kOutputsAt), travelled.payload().data(), kOutputBytes), 0);
}

TEST(GpuMemoryRpcTest, StreamsOfAttentionDoTheSame) {
  GpuFixture f;
  f.PutChain();
  v1::AttendResponse travelled;
  ASSERT_TRUE(f.Attend(GpuFixture::Request(), &travelled).ok());
  grpc::ClientContext call;
  RpcFixture::SetDeadline(&call);
  const auto stream = f.attention->AttendStream(&call);
  std::vector<v1::AttendResponse> responses;
  ASSERT_TRUE(RpcFixture::Exchange(stream.get(), {f.RequestOnGpu()}, &responses).ok());
  ASSERT_EQ(responses.size(), 1);
  EXPECT_EQ(responses[0].status().code(), 0) << responses[0].status().message();
  EXPECT_TRUE(responses[0].payload().empty());
  EXPECT_EQ(std::memcmp(f.At(kOutputsAt), travelled.payload().data(), kOutputBytes), 0);
}

TEST(GpuMemoryRpcTest, QueriesOfScoreMayLieOnTheCardButItsLogitsTravel) {
  GpuFixture f;
  f.PutChain();
  std::string travelled, on_gpu;
  ExpectCall(f.Score(f.RequestOnGpu(), &on_gpu), Code::INVALID_ARGUMENT, {"outputs_gpu_memory"});
  v1::AttentionRequest request = f.RequestOnGpu();
  request.clear_outputs_gpu_memory();
  ASSERT_TRUE(f.Score(request, &on_gpu).ok());
  ASSERT_TRUE(f.Score(GpuFixture::Request(), &travelled).ok());
  EXPECT_EQ(on_gpu, travelled);
}

TEST(GpuMemoryRpcTest, BadPlacesOfPutsAreRefused) {
  GpuFixture f;
  const auto model = f.Register("m", "qjl");
  const RawPart part = RandomPart(*model, {}, 16, 1);
  const v1::PutRequest good = f.PutFromGpu(1, part);
  const std::string bytes = std::to_string(part.payload.size());
  const auto refuse = [&](const std::function<void(v1::PutHeader*)>& spoil, Code code,
                          const std::vector<std::string>& parts) {
    v1::PutRequest bad = good;
    spoil(bad.mutable_header());
    ExpectItem(f.PutOne(bad).status(), code, parts);
  };
  const auto spoil_ref = [](auto change) {
    return [change](v1::PutHeader* header) { change(header->mutable_gpu_memory()); };
  };
  refuse(spoil_ref([](auto* ref) { ref->mutable_ipc_handle()->pop_back(); }),
         Code::INVALID_ARGUMENT, {"gpu_memory.ipc_handle", "63", "64"});
  refuse(spoil_ref([](auto* ref) { (*ref->mutable_ipc_handle())[0] = 9; }), Code::INVALID_ARGUMENT,
         {"gpu_memory.ipc_handle", "no such handle"});
  refuse(spoil_ref([](auto* ref) { ref->set_offset(8); }), Code::INVALID_ARGUMENT,
         {"gpu_memory.offset", "8", "16"});
  refuse(spoil_ref([](auto* ref) { ref->set_offset(kAllocationBytes - 16); }),
         Code::INVALID_ARGUMENT,
         {std::to_string(kAllocationBytes - 16), bytes, std::to_string(kAllocationBytes)});
  refuse(spoil_ref([](auto* ref) { ref->set_offset(~uint64_t{15}); }), Code::INVALID_ARGUMENT,
         {std::to_string(kAllocationBytes)});
  refuse(spoil_ref([](auto* ref) { ref->set_length(ref->length() - 4); }), Code::INVALID_ARGUMENT,
         {"gpu_memory.length", std::to_string(part.payload.size() - 4), bytes});
  refuse(spoil_ref([](auto* ref) { ref->set_length(0); }), Code::INVALID_ARGUMENT,
         {"gpu_memory.length is 0"});
  refuse([](auto* header) { header->mutable_segment()->set_length(1); }, Code::INVALID_ARGUMENT,
         {"gpu_memory", "segment"});
  refuse(
      [&](auto* header) {
        header->set_encoded(true);
        header->mutable_part()->set_fingerprint(model->fingerprint.data(), 16);
        header->mutable_part()->set_format_version(kFormatVersion);
      },
      Code::INVALID_ARGUMENT, {"gpu_memory", "encoded"});
  v1::PutRequest with_payload = good;
  with_payload.set_payload("x");
  ExpectItem(f.PutOne(with_payload).status(), Code::INVALID_ARGUMENT, {"payload has", bytes});
  EXPECT_EQ(f.gpu.encodes, 0);
  EXPECT_EQ(f.pool.GetStats().blocks, 0);
}

TEST(GpuMemoryRpcTest, BadPlacesOfAttentionAreRefused) {
  GpuFixture f;
  f.PutChain();
  v1::AttentionRequest request = f.RequestOnGpu();
  request.mutable_outputs_gpu_memory()->set_length(kOutputBytes - 1);
  f.ExpectRefused(request, Code::INVALID_ARGUMENT,
                  {"outputs_gpu_memory.length", std::to_string(kOutputBytes - 1),
                   std::to_string(kOutputBytes)});
  request = f.RequestOnGpu();
  request.mutable_queries_gpu_memory()->set_length(kQueryBytes - 4);
  f.ExpectRefused(request, Code::INVALID_ARGUMENT,
                  {"queries", std::to_string(kQueryBytes - 4), std::to_string(kQueryBytes)});
  request.mutable_queries_gpu_memory()->set_length(kQueryBytes - 2);
  f.ExpectRefused(request, Code::INVALID_ARGUMENT,
                  {"queries_gpu_memory.length", std::to_string(kQueryBytes - 2), "4"});
  request = f.RequestOnGpu();
  request.set_queries("1234");
  f.ExpectRefused(request, Code::INVALID_ARGUMENT, {"queries has 4", "queries_gpu_memory"});
  request = f.RequestOnGpu();
  request.mutable_queries_segment()->set_length(4);
  f.ExpectRefused(request, Code::INVALID_ARGUMENT, {"queries_gpu_memory", "queries_segment"});
  request = f.RequestOnGpu();
  request.mutable_outputs_segment()->set_length(4);
  f.ExpectRefused(request, Code::INVALID_ARGUMENT, {"outputs_gpu_memory", "outputs_segment"});
  request = f.RequestOnGpu();
  (*request.mutable_outputs_gpu_memory()->mutable_ipc_handle())[0] = 9;
  f.ExpectRefused(request, Code::INVALID_ARGUMENT, {"outputs_gpu_memory.ipc_handle"});
  request = f.RequestOnGpu();
  const float infinity = INFINITY;
  std::memcpy(f.At(kQueriesAt), &infinity, sizeof(infinity));
  f.ExpectRefused(request, Code::INVALID_ARGUMENT, {"a query on the card"});
}

TEST(GpuMemoryRpcTest, AServerWithoutACardSaysSo) {
  GpuFixture f;
  f.PutChain();
  f.context.gpu = nullptr;
  const auto model = *f.registry.Get(0, "m");
  ExpectItem(f.PutOne(f.PutFromGpu(3, RandomPart(*model, {}, 16, 3))).status(), Code::UNAVAILABLE,
             {"gpu_memory", "no GPU"});
  v1::GetRequest get = GpuFixture::DecodedRequest(2);
  *get.mutable_gpu_memory() = f.Ref(0, kAllocationBytes);
  ExpectItem(f.Get({get})[0].status(), Code::UNAVAILABLE, {"gpu_memory", "no GPU"});
  f.ExpectRefused(f.RequestOnGpu(), Code::UNAVAILABLE, {"queries_gpu_memory", "no GPU"});
}

TEST(GpuMemoryRpcTest, ACardThatFailsIsUnavailableAndTheHostGoesOn) {
  GpuFixture f;
  f.PutChain();
  const auto model = *f.registry.Get(0, "m");
  f.PutOk("m", 5, 0, RandomPart(*model, {}, 16, 5));
  f.gpu.on_encode = [&] { f.gpu.Break(); };
  ExpectItem(f.PutOne(f.PutFromGpu(3, RandomPart(*model, {}, 16, 3))).status(), Code::UNAVAILABLE,
             {});
  f.ExpectRefused(f.RequestOnGpu(), Code::UNAVAILABLE, {"queries_gpu_memory"});
  EXPECT_EQ(f.Get({RpcFixture::GetRequestFor(1, "m", 5)})[0].status().code(), 0);
}

TEST(GpuMemoryRpcTest, APutWhoseTimeIsOverWhenItWasReadStoresNothing) {
  GpuFixture f;
  const auto model = f.Register("m", "qjl");
  v1::PutRequest put = f.PutFromGpu(1, RandomPart(*model, {}, 16, 1));
  put.set_timeout_ms(100);
  f.gpu.on_encode = [&] { std::this_thread::sleep_for(std::chrono::milliseconds(150)); };
  ExpectItem(f.PutOne(put).status(), Code::DEADLINE_EXCEEDED, {"time was over"});
  EXPECT_EQ(f.gpu.encodes, 1);
  EXPECT_EQ(f.pool.GetStats().blocks, 0);
}

// Messages come faster than the card encodes: what has come meanwhile goes to it together.
TEST(GpuMemoryRpcTest, PutsThatWaitGoToTheCardTogether) {
  constexpr uint64_t kItems = 100;
  GpuFixture f;
  const auto model = f.Register("m", "qjl");
  const RawPart part = RandomPart(*model, {}, 16, 1);
  f.gpu.on_encode = [] { std::this_thread::sleep_for(std::chrono::milliseconds(5)); };
  std::vector<v1::PutRequest> puts;
  for (uint64_t i = 1; i <= kItems; ++i) {
    puts.push_back(f.PutFromGpu(i, part));
    puts.back().set_request_id(i);
    if (i % 10 == 0) puts.back().mutable_header()->mutable_gpu_memory()->set_offset(1 << 20);
    if (i % 10 == 5) puts.back().mutable_header()->set_block_hash(HashBytes(1));
  }
  const auto answers = f.Put(puts);
  ASSERT_EQ(answers.size(), kItems);
  for (const v1::PutResponse& answer : answers) {
    const bool outside = answer.request_id() % 10 == 0;
    ExpectItem(answer.status(), outside ? Code::INVALID_ARGUMENT : Code::OK, {});
  }
  EXPECT_LT(f.gpu.encodes, static_cast<int>(kItems / 2));
  EXPECT_EQ(f.pool.GetStats().blocks, kItems - 2 * kItems / 10);
}

// Eight items in a message, some of them bad, and one behind it.
TEST(GpuMemoryRpcTest, ItemsOfOneMessageAreAnsweredAsIfTheyCameAlone) {
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

TEST(GpuMemoryRpcTest, ItemsOfOneMessageMayFollowTheEndOfALargeOne) {
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

TEST(GpuMemoryRpcTest, MessagesWhoseFurtherItemsAreNoneEndTheStream) {
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

TEST(GpuMemoryRpcTest, ARequestIdTwiceInAMessageEndsTheStreamBehindTheFirst) {
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

TEST(GpuMemoryRpcTest, ItemsOfOneMessageHaveTimesOfTheirOwn) {
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

// Who sends nothing in `more` need not look for answers there.
TEST(GpuMemoryRpcTest, AnswersTravelTogetherOnlyWhereItemsDid) {
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

// What the card does not take goes over the host, and that memory is admitted.
TEST(GpuMemoryRpcTest, BytesThatGoOverTheHostAreAdmitted) {
  GpuFixture f(/*inflight_bytes=*/4000);
  const auto model = f.Register("m", "qjl");
  const RawPart part = RandomPart(*model, {}, 16, 1);
  f.gpu.takes = [](const Model&) { return false; };
  ExpectItem(f.PutOne(f.PutFromGpu(1, part)).status(), Code::RESOURCE_EXHAUSTED,
             {std::to_string(part.payload.size()), "4000"});
  f.gpu.takes = [](const Model&) { return true; };
  EXPECT_EQ(f.PutOne(f.PutFromGpu(1, part)).status().code(), 0);
  f.gpu.takes = [](const Model&) { return false; };
  v1::GetRequest get = GpuFixture::DecodedRequest(1);
  *get.mutable_gpu_memory() = f.Ref(0, kAllocationBytes);
  ExpectItem(f.Get({get})[0].status(), Code::RESOURCE_EXHAUSTED, {"4000"});
}

TEST(GpuMemoryRpcTest, StatsTellOfTheCard) {
  GpuFixture f;
  f.PutChain();
  v1::AttendResponse attended;
  ASSERT_TRUE(f.Attend(f.RequestOnGpu(), &attended).ok());
  const auto stats_now = [&f] {
    grpc::ClientContext call;
    v1::GetStatsResponse stats;
    EXPECT_TRUE(f.cache->GetStats(&call, {}, &stats).ok());
    return stats;
  };
  v1::GetStatsResponse stats = stats_now();
  ASSERT_EQ(stats.tiers_size(), 2);
  EXPECT_EQ(stats.tiers(1).name(), "gpu");
  EXPECT_EQ(stats.tiers(1).capacity_bytes(), size_t{1} << 20);
  EXPECT_EQ(stats.tiers(1).used_bytes(), stats.tiers(0).used_bytes());
  EXPECT_EQ(stats.tiers(1).blocks(), 2);
  EXPECT_EQ(stats.gpu().name(), "fake");
  EXPECT_EQ(stats.gpu().failure(), "");
  EXPECT_EQ(stats.gpu().stale_blocks(), 2) << "they were put from the card";
  EXPECT_EQ(stats.gpu().attention_calls_total(), 1);
  f.gpu.Break();
  EXPECT_FALSE(f.Attend(f.Request(), &attended).ok());
  stats = stats_now();
  EXPECT_EQ(stats.gpu().failure(), "the fake card is broken");
  EXPECT_EQ(stats.gpu().lost_total(), 2);
  EXPECT_EQ(stats.tiers(1).capacity_bytes(), 0) << "nothing is served from there any more";
}

}  // namespace
}  // namespace sketchkv
