#include <gtest/gtest.h>

#include <map>
#include <thread>

#include "tests/rpc/rpc_fixture.h"

namespace sketchkv {
namespace {

v1::LookupRequest LookupFor(const std::string& model, std::vector<uint64_t> chain,
                            uint32_t lease_ttl_ms = 0) {
  v1::LookupRequest request;
  request.set_model(model);
  for (const uint64_t hash : chain) request.add_block_hashes(HashBytes(hash));
  request.set_lease_ttl_ms(lease_ttl_ms);
  return request;
}

// A chain 1 <- 2 <- 3, the last of 5 tokens.
struct StoredChain {
  explicit StoredChain(const std::string& profile = "qjl") {
    model = f.Register("m", profile);
    for (uint64_t hash = 1; hash <= 3; ++hash) {
      parts.push_back(RandomPart(*model, {}, hash == 3 ? 5 : 16, hash));
      f.PutOk("m", hash, hash - 1, parts.back());
    }
  }
  v1::LookupResponse Lookup(const v1::LookupRequest& request) {
    grpc::ClientContext call;
    v1::LookupResponse response;
    const grpc::Status status = f.cache->Lookup(&call, request, &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return response;
  }
  uint64_t Delete(std::vector<uint64_t> hashes) {
    grpc::ClientContext call;
    v1::DeleteRequest request;
    request.set_model("m");
    for (const uint64_t hash : hashes) request.add_block_hashes(HashBytes(hash));
    v1::DeleteResponse response;
    const grpc::Status status = f.cache->Delete(&call, request, &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return response.num_blocks();
  }

  RpcFixture f;
  std::shared_ptr<const Model> model;
  std::vector<RawPart> parts;
};

TEST(CacheRpcTest, LookupFindsTheLongestSealedPrefix) {
  StoredChain chain;
  v1::LookupResponse found = chain.Lookup(LookupFor("m", {1, 2, 3, 4}));
  EXPECT_EQ(found.num_blocks(), 3);
  EXPECT_EQ(found.num_tokens(), 37);
  EXPECT_EQ(found.lease_id(), 0);
  EXPECT_EQ(chain.Lookup(LookupFor("m", {2, 3})).num_blocks(), 0) << "starts at a root";
  EXPECT_EQ(chain.Lookup(LookupFor("m", {9})).num_blocks(), 0);
  grpc::ClientContext empty_call, model_call, ttl_call, hash_call;
  ExpectCall(chain.f.cache->Lookup(&empty_call, LookupFor("m", {}), &found),
             grpc::StatusCode::INVALID_ARGUMENT, {"block_hashes has 0"});
  ExpectCall(chain.f.cache->Lookup(&model_call, LookupFor("x", {1}), &found),
             grpc::StatusCode::NOT_FOUND, {"'x'"});
  ExpectCall(chain.f.cache->Lookup(&ttl_call, LookupFor("m", {1}, 600001), &found),
             grpc::StatusCode::INVALID_ARGUMENT, {"600001", "600000"});
  v1::LookupRequest long_hash = LookupFor("m", {1});
  long_hash.add_block_hashes(std::string(33, 'x'));
  ExpectCall(chain.f.cache->Lookup(&hash_call, long_hash, &found),
             grpc::StatusCode::INVALID_ARGUMENT, {"block_hashes[1]", "33"});
}

TEST(CacheRpcTest, LeasesHoldRenewAndRelease) {
  StoredChain chain;
  const v1::LookupResponse found = chain.Lookup(LookupFor("m", {1, 2, 3}, 5000));
  ASSERT_NE(found.lease_id(), 0);
  EXPECT_EQ(found.lease_ttl_ms(), 5000);
  grpc::ClientContext renew_call, release_call, again_call, zero_call;
  v1::RenewLeaseRequest renew;
  renew.set_lease_id(found.lease_id());
  renew.set_ttl_ms(7000);
  v1::RenewLeaseResponse renewed;
  ASSERT_TRUE(chain.f.cache->RenewLease(&renew_call, renew, &renewed).ok());
  EXPECT_EQ(renewed.ttl_ms(), 7000);
  renew.set_ttl_ms(0);
  ExpectCall(chain.f.cache->RenewLease(&zero_call, renew, &renewed),
             grpc::StatusCode::INVALID_ARGUMENT, {"ttl_ms is 0"});
  EXPECT_EQ(chain.Delete({1}), 3);
  EXPECT_GT(chain.f.pool.GetStats().leased_bytes, 0);
  v1::ReleaseLeaseRequest release;
  release.set_lease_id(found.lease_id());
  v1::ReleaseLeaseResponse released;
  ASSERT_TRUE(chain.f.cache->ReleaseLease(&release_call, release, &released).ok());
  ExpectCall(chain.f.cache->ReleaseLease(&again_call, release, &released),
             grpc::StatusCode::NOT_FOUND, {});
  EXPECT_EQ(chain.f.pool.GetStats().used_bytes, 0) << "freed at the last unpin";
}

TEST(CacheRpcTest, GetServesRangesFormatsAndErrorsItemByItem) {
  StoredChain chain("raw");
  std::vector<v1::GetRequest> requests;
  const auto add = [&](uint64_t id, uint64_t hash) -> v1::GetRequest& {
    requests.push_back(RpcFixture::GetRequestFor(id, "m", hash));
    return requests.back();
  };
  const auto raw = [](v1::GetRequest* request, v1::DType dtype, v1::RawOrder order) {
    request->mutable_format()->set_dtype(dtype);
    request->mutable_format()->set_raw_order(order);
  };
  raw(&add(1, 1), v1::DTYPE_FP32, v1::RAW_ORDER_NHD);
  add(2, 3);
  v1::GetRequest& part = add(3, 2);
  raw(&part, v1::DTYPE_BF16, v1::RAW_ORDER_HND);
  part.mutable_range()->set_layer_begin(1);
  part.mutable_range()->set_head_begin(1);
  raw(&add(4, 7), v1::DTYPE_BF16, v1::RAW_ORDER_NHD);
  add(5, 1).mutable_range()->set_layer_begin(2);
  raw(&add(6, 1), v1::DTYPE_FP8_E5M2, v1::RAW_ORDER_NHD);
  raw(&add(7, 1), v1::DTYPE_BF16, v1::RAW_ORDER_UNSPECIFIED);
  std::map<uint64_t, v1::GetResponse> by_id;
  for (const auto& response : chain.f.Get(requests)) by_id[response.request_id()] = response;
  ASSERT_EQ(by_id.size(), 7);
  EXPECT_EQ(by_id[1].payload(), chain.parts[0].payload);
  EXPECT_EQ(by_id[1].part().num_tokens(), 16);
  EXPECT_EQ(by_id[2].payload().size(), chain.model->shape.slot_bytes);
  EXPECT_EQ(by_id[2].part().num_tokens(), 5);
  EXPECT_EQ(by_id[2].part().fingerprint().size(), 16);
  EXPECT_EQ(by_id[3].payload().size(), 16 * (32 + 16) * 2);
  for (const uint64_t ok : {1, 2, 3}) {
    EXPECT_EQ(by_id[ok].checksum(), PayloadChecksum(Bytes(by_id[ok].payload())));
  }
  ExpectItem(by_id[4].status(), grpc::StatusCode::NOT_FOUND, {TestHash(7).ToHex()});
  ExpectItem(by_id[5].status(), grpc::StatusCode::INVALID_ARGUMENT, {"layer_begin is 2", "2"});
  ExpectItem(by_id[6].status(), grpc::StatusCode::INVALID_ARGUMENT, {"format.dtype is 5"});
  ExpectItem(by_id[7].status(), grpc::StatusCode::INVALID_ARGUMENT, {"raw_order is 0"});
  chain.f.ExpectNothingPinned();
}

TEST(CacheRpcTest, DeleteTakesTheSubtreeAndClearAllOfTheModel) {
  StoredChain chain;
  chain.f.PutOk("m", 10, 0, chain.parts[0]);
  grpc::ClientContext empty_call;
  v1::DeleteRequest nothing;
  nothing.set_model("m");
  v1::DeleteResponse none;
  ExpectCall(chain.f.cache->Delete(&empty_call, nothing, &none), grpc::StatusCode::INVALID_ARGUMENT,
             {"block_hashes has 0"});
  EXPECT_EQ(chain.Delete({2, 77}), 2);
  EXPECT_EQ(chain.Lookup(LookupFor("m", {1, 2, 3})).num_blocks(), 1);
  grpc::ClientContext call;
  v1::ClearRequest clear;
  clear.set_model("m");
  v1::ClearResponse cleared;
  ASSERT_TRUE(chain.f.cache->Clear(&call, clear, &cleared).ok());
  EXPECT_EQ(cleared.num_blocks(), 2);
  EXPECT_EQ(chain.f.pool.GetStats().used_bytes, 0);
}

TEST(CacheRpcTest, WatchTellsWhatHappensInOrder) {
  RpcFixture f;
  const auto model = f.Register("m", "qjl");
  const RawPart part = RandomPart(*model, {}, 16, 1);
  grpc::ClientContext call;
  v1::WatchRequest request;
  request.set_model("m");
  request.set_from_sequence(1);
  const auto stream = f.cache->Watch(&call, request);
  f.PutOk("m", 1, 0, part);
  f.PutOk("m", 2, 1, part);
  grpc::ClientContext delete_call;
  v1::DeleteRequest remove;
  remove.set_model("m");
  remove.add_block_hashes(HashBytes(2));
  v1::DeleteResponse removed;
  ASSERT_TRUE(f.cache->Delete(&delete_call, remove, &removed).ok());
  using Event = std::pair<v1::WatchResponse::Type, std::string>;
  const std::vector<Event> expected = {{v1::WatchResponse::TYPE_STORED, HashBytes(1)},
                                       {v1::WatchResponse::TYPE_SEALED, HashBytes(1)},
                                       {v1::WatchResponse::TYPE_STORED, HashBytes(2)},
                                       {v1::WatchResponse::TYPE_SEALED, HashBytes(2)},
                                       {v1::WatchResponse::TYPE_DELETED, HashBytes(2)}};
  uint64_t sequence = 0;
  for (const Event& event : expected) {
    v1::WatchResponse response;
    ASSERT_TRUE(stream->Read(&response));
    EXPECT_EQ(response.type(), event.first);
    EXPECT_EQ(response.block_hash(), event.second);
    EXPECT_EQ(response.model(), "m");
    EXPECT_EQ(response.sequence(), ++sequence);
  }
  call.TryCancel();
  v1::WatchResponse none;
  EXPECT_FALSE(stream->Read(&none));
  EXPECT_EQ(stream->Finish().error_code(), grpc::StatusCode::CANCELLED);
}

TEST(CacheRpcTest, WatchTellsOfEvictions) {
  RpcFixture f({.budget_bytes = size_t{1} << 20});
  const auto model = f.Register("m", "raw");
  const RawPart part = RandomPart(*model, {}, 16, 1);
  grpc::ClientContext call;
  const auto stream = f.cache->Watch(&call, v1::WatchRequest());
  stream->WaitForInitialMetadata();
  for (uint64_t hash = 1; f.pool.GetStats().evicted_total == 0; ++hash) f.PutOk("m", hash, 0, part);
  v1::WatchResponse response;
  do {
    ASSERT_TRUE(stream->Read(&response));
  } while (response.type() == v1::WatchResponse::TYPE_STORED ||
           response.type() == v1::WatchResponse::TYPE_SEALED ||
           response.type() == v1::WatchResponse::TYPE_GAP);
  EXPECT_EQ(response.type(), v1::WatchResponse::TYPE_EVICTED);
  call.TryCancel();
}

TEST(CacheRpcTest, AWatcherThatFellBehindIsToldOfTheGap) {
  RpcFixture f;  // the log keeps 64 events
  const auto model = f.Register("m", "qjl");
  const RawPart part = RandomPart(*model, {}, 16, 1);
  for (uint64_t hash = 1; hash <= 50; ++hash) f.PutOk("m", hash, 0, part);  // 100 events
  grpc::ClientContext call;
  v1::WatchRequest request;
  request.set_from_sequence(1);
  const auto stream = f.cache->Watch(&call, request);
  v1::WatchResponse gap, next;
  ASSERT_TRUE(stream->Read(&gap));
  EXPECT_EQ(gap.type(), v1::WatchResponse::TYPE_GAP);
  EXPECT_EQ(gap.sequence(), 36);
  ASSERT_TRUE(stream->Read(&next));
  EXPECT_EQ(next.sequence(), 37);
  EXPECT_EQ(next.model(), "m");
  call.TryCancel();
  // A reader that knows more than this log ever had: the server was started anew.
  grpc::ClientContext ahead_call;
  request.set_from_sequence(5000);
  const auto ahead = f.cache->Watch(&ahead_call, request);
  ASSERT_TRUE(ahead->Read(&gap));
  EXPECT_EQ(gap.type(), v1::WatchResponse::TYPE_GAP);
  EXPECT_EQ(gap.sequence(), 100);
  ahead_call.TryCancel();
  grpc::ClientContext unknown_call;
  request.set_model("nobody");
  const auto refused = f.cache->Watch(&unknown_call, request);
  EXPECT_FALSE(refused->Read(&gap));
  ExpectCall(refused->Finish(), grpc::StatusCode::NOT_FOUND, {"nobody"});
}

TEST(CacheRpcTest, ReadsUnderEvictionNeverSeeWrongBytes) {
  RpcFixture f({.budget_bytes = size_t{2} << 20});
  const auto model = f.Register("m", "raw");
  std::atomic<bool> stop{false};
  std::atomic<int> hits{0}, misses{0};
  std::thread reader([&] {
    for (uint64_t i = 0; !stop; ++i) {
      const uint64_t hash = 1 + i % 600;
      v1::GetRequest get = RpcFixture::GetRequestFor(1, "m", hash);
      get.mutable_format()->set_dtype(v1::DTYPE_FP32);
      get.mutable_format()->set_raw_order(v1::RAW_ORDER_NHD);
      const auto responses = f.Get({get});
      ASSERT_EQ(responses.size(), 1);
      if (responses[0].status().code() == 0) {
        ++hits;
        ASSERT_EQ(responses[0].payload(), RandomPart(*model, {}, 16, hash).payload);
      } else {
        ++misses;
        ASSERT_EQ(responses[0].status().code(), grpc::StatusCode::NOT_FOUND);
      }
    }
  });
  for (uint64_t hash = 1; hash <= 600; ++hash) {
    f.PutOk("m", hash, 0, RandomPart(*model, {}, 16, hash));
    ASSERT_LE(f.pool.GetStats().page_bytes, size_t{2} << 20);
  }
  stop = true;
  reader.join();
  EXPECT_GT(f.pool.GetStats().evicted_total, 300);
  EXPECT_GT(hits + misses, 0);
}

// Encoded cells are sent from where they lie, so an answer that nobody reads keeps a block pinned.
TEST(CacheRpcTest, AReaderThatDoesNotReadIsCancelledAndPinsNothing) {
  RpcFixture f;
  v1::RegisterModelRequest wide = RpcFixture::ModelRequest("wide", "raw");
  wide.mutable_layout()->set_block_tokens(1024);
  wide.mutable_layout()->set_num_kv_heads(8);
  wide.mutable_layout()->set_head_dim(128);
  v1::Model registered;
  ASSERT_TRUE(f.Register(wide, &registered).ok());
  f.PutOk("wide", 1, 0, RandomPart(**f.registry.Get(0, "wide"), {}, 1024, 1));
  grpc::ClientContext call;
  RpcFixture::SetDeadline(&call);
  const auto stream = f.cache->Get(&call);
  ASSERT_TRUE(stream->Write(RpcFixture::GetRequestFor(1, "wide", 1)));
  for (int i = 0; i < 2000 && f.pool.GetStats().pinned_bytes == 0; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  ASSERT_EQ(f.pool.GetStats().pinned_bytes, registered.slot_bytes());
  f.writes.Sweep(f.clock.Now());
  EXPECT_EQ(f.pool.GetStats().pinned_bytes, registered.slot_bytes()) << "it still has time";
  // Again and again, as the server does: the pin is taken a moment before the write begins.
  for (int i = 0; i < 2000 && f.inflight.used() > 0; ++i) {
    f.writes.Sweep(f.clock.Now() + f.context.max_timeout);
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  EXPECT_EQ(f.inflight.used(), 0);
  f.ExpectNothingPinned();
  for (v1::GetResponse response; stream->Read(&response);) {
  }
  EXPECT_EQ(stream->Finish().error_code(), grpc::StatusCode::CANCELLED);
}

TEST(CacheRpcTest, StatsCountWhatIsThere) {
  StoredChain chain;
  grpc::ClientContext call;
  v1::GetStatsResponse stats;
  ASSERT_TRUE(chain.f.cache->GetStats(&call, {}, &stats).ok());
  ASSERT_EQ(stats.tiers_size(), 1);
  EXPECT_EQ(stats.tiers(0).name(), "host");
  EXPECT_EQ(stats.tiers(0).sealed_blocks(), 3);
  EXPECT_EQ(stats.tiers(0).used_bytes(), 3 * chain.model->shape.slot_bytes);
  EXPECT_EQ(stats.put_raw_bytes_total(),
            chain.parts[0].payload.size() * 2 + chain.parts[2].payload.size());
  EXPECT_EQ(stats.isa(), "scalar");
}

}  // namespace
}  // namespace sketchkv
