// Puts from, gets into and attention in a worker's memory on the card, without the SDK.

#include <cmath>
#include <functional>
#include <thread>

#include "tests/rpc/gpu_memory_fixture.h"

namespace sketchkv {
namespace {

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
