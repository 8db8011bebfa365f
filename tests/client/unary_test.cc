// Calls about models and leases, and Watch, against a server that misbehaves as told.
#include "tests/client/fake_server.h"
#include "tests/testing/status_matchers.h"

namespace sketchkv {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

class UnaryTest : public testing::Test {
 protected:
  UnaryTest() { options_.retry_pause = milliseconds(1); }

  ClientOptions options_;
  FakeServer server_;
  const std::vector<BlockId> chain_ = {BlockId(32, 'a'), BlockId(32, 'b')};
};

TEST_F(UnaryTest, UnaryCallsFollowGrpcsRetryHint) {
  server_.cache.on_lookup = [this](grpc::ServerContext* context, auto,
                                   v1::LookupResponse* response) {
    if (server_.cache.num_lookups == 1) {
      context->AddTrailingMetadata("grpc-retry-pushback-ms", "30");
      return grpc::Status(grpc::StatusCode::RESOURCE_EXHAUSTED, "queue full");
    }
    response->set_num_blocks(1);
    response->set_num_tokens(8);
    return grpc::Status::OK;
  };
  const BlockId hash(32, 'a');
  const auto begin = steady_clock::now();
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const LookupResult found,
                                server_.NewClient(options_)->Lookup("small", std::span(&hash, 1)));
  EXPECT_EQ(found.num_tokens, 8u);
  EXPECT_EQ(server_.cache.num_lookups, 2);
  EXPECT_GE(steady_clock::now() - begin, milliseconds(30));
}

TEST_F(UnaryTest, LookupIsRepeatedOnlyWhereNoLeaseCanBeLost) {
  server_.cache.on_lookup = [](auto, auto, auto) {
    return grpc::Status(grpc::StatusCode::UNAVAILABLE, "dying");
  };
  const auto client = server_.NewClient(options_);
  EXPECT_THAT(client->Lookup("small", chain_, milliseconds(1000)),
              StatusIs(absl::StatusCode::kUnavailable, {"dying"}));
  EXPECT_EQ(server_.cache.num_lookups, 1);
  EXPECT_THAT(client->Lookup("small", chain_), StatusIs(absl::StatusCode::kUnavailable, {"dying"}));
  EXPECT_EQ(server_.cache.num_lookups, 2 + static_cast<int>(options_.max_retries));
}

TEST_F(UnaryTest, LookupOfMoreThanTheChainIsNoAnswer) {
  server_.cache.on_lookup = [](auto, auto, v1::LookupResponse* response) {
    response->set_num_blocks(3);
    return grpc::Status::OK;
  };
  EXPECT_THAT(server_.NewClient()->Lookup("small", chain_),
              StatusIs(absl::StatusCode::kInternal, {"num_blocks is 3", "2"}));
}

TEST_F(UnaryTest, UnregisterModelIsNotRepeated) {
  EXPECT_THAT(server_.NewClient(options_)->UnregisterModel("small"),
              StatusIs(absl::StatusCode::kUnavailable, {"dying"}));
  EXPECT_EQ(server_.models.num_unregisters, 1);
}

TEST_F(UnaryTest, LeaseGoneAtTheSecondTryIsReleased) {
  int tries = 0, num_lost = 1;
  server_.cache.on_release = [&] {
    return ++tries <= num_lost ? grpc::Status(grpc::StatusCode::UNAVAILABLE, "dying")
                               : grpc::Status(grpc::StatusCode::NOT_FOUND, "lease_id 7");
  };
  const auto client = server_.NewClient(options_);
  SKETCHKV_EXPECT_OK(client->ReleaseLease(7));
  EXPECT_EQ(tries, 2);
  num_lost = 0;
  EXPECT_THAT(client->ReleaseLease(7), StatusIs(absl::StatusCode::kNotFound, {"lease_id 7"}));
}

TEST_F(UnaryTest, RegisterModelWantsTheLayoutItAskedFor) {
  const auto client = server_.NewClient();
  CacheLayout layout{.num_layers = 2, .num_kv_heads = 2, .head_dim = 16, .value_dim = 16};
  layout.block_tokens = 8;
  layout.key_type = layout.value_type = ElementType::kFp32;
  layout.key_scale = 0;  // not given: 1
  SKETCHKV_EXPECT_OK(client->RegisterModel("other", layout, {}));
  layout.block_tokens = 64;
  EXPECT_THAT(client->RegisterModel("other", layout, {}),
              StatusIs(absl::StatusCode::kInternal, {"block_tokens 8", "64"}));
}

TEST_F(UnaryTest, ModelWhoseCellsDoNotFillItsSlotIsRefused) {
  server_.models.models["small"].set_slot_bytes(255);
  EXPECT_THAT(server_.NewClient()->GetModel("small"),
              StatusIs(absl::StatusCode::kInternal, {"slot_bytes is 255", "256"}));
}

TEST_F(UnaryTest, WaitUntilServingFollowsHealth) {
  server_.grpc_server().GetHealthCheckService()->SetServingStatus("", false);
  const auto client = server_.NewClient();
  EXPECT_THAT(client->WaitUntilServing(milliseconds(500)),
              StatusIs(absl::StatusCode::kDeadlineExceeded, {"NOT_SERVING"}));
  std::thread changer([this] {
    std::this_thread::sleep_for(milliseconds(30));
    server_.grpc_server().GetHealthCheckService()->SetServingStatus("", true);
  });
  SKETCHKV_EXPECT_OK(client->WaitUntilServing(milliseconds(5000)));
  changer.join();
}

TEST_F(UnaryTest, DestroyingTheClientEndsItsWatch) {
  std::atomic<bool> watching = false;
  server_.cache.on_watch = [&](grpc::ServerContext* context) {
    watching = true;
    WaitUntilCancelled(context);
    return grpc::Status::OK;
  };
  auto client = server_.NewClient();
  std::thread watcher([&watching, raw = client.get()] {
    const absl::Status status = raw->Watch("small", 0, [](const CacheEvent&) { return true; });
    EXPECT_THAT(status, StatusIs(absl::StatusCode::kCancelled));
    watching = true;
  });
  while (!watching) std::this_thread::sleep_for(milliseconds(1));
  client.reset();
  watcher.join();
}

}  // namespace
}  // namespace sketchkv
