// Get against a server that misbehaves as told.
#include "tests/client/store_fixture.h"

namespace sketchkv {
namespace {

using GetTest = StoreTest;

TEST_F(GetTest, GetJoinsChunksThatInterleave) {
  const std::vector<std::byte> a = Bytes(kSmallBlockBytes, 1), b = Bytes(kSmallBlockBytes, 2);
  server_.cache.on_get = [&](grpc::ServerContext*, GetStream* stream) {
    v1::GetRequest request;
    std::map<char, uint64_t> ids;
    while (ids.size() < 2 && stream->Read(&request)) {
      ids[request.block_hash()[0]] = request.request_id();
    }
    const auto half = [&](char name, const std::vector<std::byte>& payload, bool last) {
      v1::GetResponse response = GetAnswer(ids[name], payload);
      response.set_payload(payload.data() + (last ? 1000 : 0), last ? payload.size() - 1000 : 1000);
      if (last) response.clear_part();
      if (!last) response.clear_status();
      stream->Write(response);
    };
    half('b', b, false);
    half('a', a, false);
    half('a', a, true);
    half('b', b, true);
    return grpc::Status::OK;
  };
  const std::vector<GetPart> parts = {SmallGet('a'), SmallGet('b')};
  const auto results = server_.NewClient()->GetAll(parts);
  SKETCHKV_ASSERT_OK(results[0]);
  SKETCHKV_ASSERT_OK(results[1]);
  EXPECT_EQ(results[0]->num_tokens, 8u);
  EXPECT_EQ(results[0]->payload, a);
  EXPECT_EQ(results[1]->payload, b);
}

TEST_F(GetTest, GetRefusesDamagedSurplusAndMissingBytes) {
  std::function<void(v1::GetResponse*)> spoil;
  server_.cache.on_get = [&](grpc::ServerContext*, GetStream* stream) {
    v1::GetRequest request;
    while (stream->Read(&request)) {
      v1::GetResponse response = GetAnswer(request.request_id(), payload_);
      spoil(&response);
      stream->Write(response);
    }
    return grpc::Status::OK;
  };
  const auto client = server_.NewClient(options_);
  spoil = [](v1::GetResponse* response) { (*response->mutable_payload())[77] ^= 1; };
  EXPECT_THAT(client->Get(SmallGet()), StatusIs(absl::StatusCode::kDataLoss, {"checksum"}));
  spoil = [](v1::GetResponse* response) { response->mutable_payload()->push_back('x'); };
  EXPECT_THAT(client->Get(SmallGet()), StatusIs(absl::StatusCode::kInternal, {"4097", "4096"}));
  spoil = [](v1::GetResponse* response) { response->mutable_payload()->pop_back(); };
  EXPECT_THAT(client->Get(SmallGet()), StatusIs(absl::StatusCode::kInternal, {"4095", "4096"}));
  spoil = [](v1::GetResponse* response) { response->mutable_part()->set_num_tokens(1u << 31); };
  EXPECT_THAT(client->Get(SmallGet()), StatusIs(absl::StatusCode::kInternal, {"2147483648", "8"}));
  spoil = [](v1::GetResponse* response) {
    response->mutable_part()->mutable_range()->set_head_begin(1);
  };
  EXPECT_THAT(client->Get(SmallGet()), StatusIs(absl::StatusCode::kInternal, {"head_begin 1"}));
  spoil = [](v1::GetResponse* response) {
    response->mutable_part()->set_raw_order(v1::RAW_ORDER_HND);
  };
  EXPECT_THAT(client->Get(SmallGet()), StatusIs(absl::StatusCode::kInternal, {"raw_order 2", "1"}));
  spoil = [](v1::GetResponse*) {};
  SKETCHKV_EXPECT_OK(client->Get(SmallGet()));
}

TEST_F(GetTest, GetWritesWhereTheCallerWantsIt) {
  server_.cache.on_get = [&](grpc::ServerContext*, GetStream* stream) {
    v1::GetRequest request;
    while (stream->Read(&request)) {
      v1::GetResponse response = GetAnswer(request.request_id(), payload_);
      if (request.block_hash()[0] == 'b') (*response.mutable_payload())[77] ^= 1;
      stream->Write(response);
    }
    return grpc::Status::OK;
  };
  constexpr std::byte kUntouched{0xa5};
  std::vector<std::byte> into(payload_.size() + 1, kUntouched), spoiled(into), little(4095);
  std::vector<GetPart> parts = {SmallGet('a'), SmallGet('b'), SmallGet('c')};
  parts[0].into = into;
  parts[1].into = spoiled;
  parts[2].into = little;
  const auto results = server_.NewClient(options_)->GetAll(parts);
  SKETCHKV_ASSERT_OK(results[0]);
  EXPECT_EQ(results[0]->payload_bytes, payload_.size());
  EXPECT_TRUE(results[0]->payload.empty());
  EXPECT_TRUE(std::equal(payload_.begin(), payload_.end(), into.begin()));
  EXPECT_EQ(into.back(), kUntouched);
  EXPECT_THAT(results[1], StatusIs(absl::StatusCode::kDataLoss, {"checksum"}));
  EXPECT_THAT(results[2], StatusIs(absl::StatusCode::kInvalidArgument, {"into has 4095", "4096"}));
}

// A server sends what it decodes before it has seen all of it.
TEST_F(GetTest, PayloadWithoutALastMessageOrBeforeAnErrorIsNoAnswer) {
  bool with_error = true;
  server_.cache.on_get = [&](grpc::ServerContext*, GetStream* stream) {
    v1::GetRequest request;
    stream->Read(&request);
    v1::GetResponse response = GetAnswer(request.request_id(), payload_);
    response.clear_status();
    stream->Write(response);  // all of it, with its checksum
    if (with_error) {
      v1::GetResponse last;
      last.set_request_id(request.request_id());
      last.mutable_status()->set_code(grpc::StatusCode::DATA_LOSS);
      last.mutable_status()->set_message("layer 1, head 0");
      stream->Write(last);
    }
    return grpc::Status::OK;
  };
  options_.max_retries = 0;
  const auto client = server_.NewClient(options_);
  EXPECT_THAT(client->Get(SmallGet()), StatusIs(absl::StatusCode::kDataLoss, {"layer 1"}));
  with_error = false;
  EXPECT_THAT(client->Get(SmallGet()),
              StatusIs(absl::StatusCode::kInternal, {"without an answer"}));
}

// The server's model was replaced by one whose cells are as large: the fingerprint alone tells.

}  // namespace
}  // namespace sketchkv
