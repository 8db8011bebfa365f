// The real server process: what it holds while ten times its budget is put.

#include <gtest/gtest.h>

#include <thread>

#include "tests/rpc/rpc_fixture.h"
#include "tests/testing/server_process.h"

namespace sketchkv {
namespace {

constexpr uint64_t kMiB = uint64_t{1} << 20;

TEST(MemoryTest, TenTimesTheBudgetStaysInsideBudgetAndOverhead) {
#if defined(__SANITIZE_ADDRESS__)
  GTEST_SKIP() << "AddressSanitizer's own memory hides the server's";
#endif
  constexpr uint64_t kBudget = 64 * kMiB, kInflight = 32 * kMiB, kOverhead = 64 * kMiB;
  ServerProcess server(
      {"--host-bytes", std::to_string(kBudget), "--inflight-bytes", std::to_string(kInflight)});
  ASSERT_NE(server.port(), 0);
  const auto channel = grpc::CreateChannel("127.0.0.1:" + std::to_string(server.port()),
                                           grpc::InsecureChannelCredentials());
  const auto models = v1::Models::NewStub(channel);
  const auto cache = v1::Cache::NewStub(channel);
  v1::RegisterModelRequest request = RpcFixture::ModelRequest("wide", "raw");
  request.mutable_layout()->set_head_dim(128);
  request.mutable_layout()->set_value_dim(128);
  request.mutable_layout()->set_block_tokens(256);
  v1::Model registered;
  grpc::ClientContext register_call;
  ASSERT_TRUE(models->RegisterModel(&register_call, request, &registered).ok());
  const uint64_t blocks = 10 * kBudget / registered.slot_bytes();
  ASSERT_GT(blocks, 500);

  ModelRegistry registry(Isa::kScalar);
  LayerProfileRequest raw;
  raw.profile.name = "raw";
  const auto model = *registry.Register(0, "wide",
                                        {.num_layers = 2,
                                         .num_kv_heads = 2,
                                         .head_dim = 128,
                                         .value_dim = 128,
                                         .block_tokens = 256,
                                         .key_dtype = DType::kFp32,
                                         .value_dtype = DType::kFp32},
                                        {raw});
  const RawPart part = RandomPart(*model, {}, 256, 1);
  // Four writers at once, each with its own chains of 64 blocks.
  std::atomic<uint64_t> next{0}, stored{0};
  std::vector<std::thread> writers;
  for (int w = 0; w < 4; ++w) {
    writers.emplace_back([&] {
      grpc::ClientContext call;
      RpcFixture::SetDeadline(&call, 240);
      const auto stream = cache->Put(&call);
      for (uint64_t n = next++; n < blocks; n = next++) {
        for (const auto& message : RpcFixture::PutMessages(n + 1, "wide", n + 1, 0, part)) {
          ASSERT_TRUE(stream->Write(message));
        }
        v1::PutResponse response;
        ASSERT_TRUE(stream->Read(&response));
        ASSERT_EQ(response.status().code(), 0) << response.status().message();
        ++stored;
      }
      stream->WritesDone();
      ASSERT_TRUE(stream->Finish().ok());
    });
  }
  for (std::thread& writer : writers) writer.join();
  EXPECT_EQ(stored, blocks);
  v1::GetStatsResponse stats;
  grpc::ClientContext stats_call;
  ASSERT_TRUE(cache->GetStats(&stats_call, {}, &stats).ok());
  EXPECT_LE(stats.tiers(0).page_bytes(), kBudget);
  EXPECT_GT(stats.tiers(0).used_bytes(), kBudget * 9 / 10) << "the budget is used";
  EXPECT_GT(stats.evicted_total(), blocks * 8 / 10);
  std::printf("peak %lu MiB: budget %lu, under way %lu, overhead %ld\n", server.PeakBytes() / kMiB,
              kBudget / kMiB, kInflight / kMiB,
              static_cast<long>(server.PeakBytes() / kMiB) -
                  static_cast<long>((kBudget + kInflight) / kMiB));
  EXPECT_LE(server.PeakBytes(), kBudget + kInflight + kOverhead);
}

}  // namespace
}  // namespace sketchkv
