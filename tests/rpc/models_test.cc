#include <gtest/gtest.h>

#include <limits>

#include "tests/rpc/rpc_fixture.h"

namespace sketchkv {
namespace {

TEST(ModelsRpcTest, RegisterReturnsTheResolvedProfileAndIsIdempotent) {
  RpcFixture f;
  v1::Model first, again;
  ASSERT_TRUE(f.Register(RpcFixture::ModelRequest("m", "qjl"), &first).ok());
  ASSERT_TRUE(f.Register(RpcFixture::ModelRequest("m", "qjl"), &again).ok());
  EXPECT_EQ(first.SerializeAsString(), again.SerializeAsString());
  EXPECT_EQ(first.fingerprint().size(), 16);
  ASSERT_EQ(first.profiles_size(), 1);
  EXPECT_EQ(first.profiles(0).layer_count(), 2);
  EXPECT_EQ(first.profiles(0).sign_bits(), 64);
  EXPECT_EQ(first.profiles(0).version(), 1);
  EXPECT_EQ(first.format_version(), 1);
  EXPECT_EQ(first.slot_bytes(), 4 * first.profiles(0).cell_bytes());
  EXPECT_EQ(first.raw_block_bytes(), 2 * 2 * 16 * (32 + 16) * 4);
  EXPECT_NEAR(first.bits_per_number(), first.slot_bytes() * 8.0 / (2 * 2 * 16 * (32 + 16)), 1e-9);
}

TEST(ModelsRpcTest, AnotherLayoutUnderTheNameNamesTheField) {
  RpcFixture f;
  v1::Model model;
  ASSERT_TRUE(f.Register(RpcFixture::ModelRequest("m", "qjl"), &model).ok());
  v1::RegisterModelRequest other = RpcFixture::ModelRequest("m", "qjl");
  other.mutable_layout()->set_head_dim(64);
  ExpectCall(f.Register(other, &model), grpc::StatusCode::ALREADY_EXISTS,
             {"head_dim = 32", "head_dim = 64"});
}

TEST(ModelsRpcTest, ListGetAndUnregister) {
  RpcFixture f;
  f.Register("b", "qjl");
  f.Register("a", "raw");
  grpc::ClientContext list_call, get_call, drop_call, gone_call;
  v1::ListModelsResponse list;
  ASSERT_TRUE(f.models->ListModels(&list_call, {}, &list).ok());
  ASSERT_EQ(list.models_size(), 2);
  EXPECT_EQ(list.models(0).name(), "a");
  v1::GetModelRequest get;
  get.set_name("b");
  v1::Model model;
  ASSERT_TRUE(f.models->GetModel(&get_call, get, &model).ok());
  EXPECT_EQ(model.SerializeAsString(), list.models(1).SerializeAsString());
  f.PutOk("b", 1, 0, RandomPart(**f.registry.Get(0, "b"), {}, 16, 1));
  v1::UnregisterModelRequest drop;
  drop.set_name("b");
  v1::UnregisterModelResponse dropped;
  ASSERT_TRUE(f.models->UnregisterModel(&drop_call, drop, &dropped).ok());
  EXPECT_EQ(dropped.dropped_blocks(), 1);
  ExpectCall(f.models->GetModel(&gone_call, get, &model), grpc::StatusCode::NOT_FOUND, {"'b'"});
  EXPECT_EQ(f.pool.GetStats().used_bytes, 0);
}

// Every bound of the layout, once below and once above: the message names field and value.
TEST(ModelsRpcTest, EachFieldOutOfBoundsIsNamedAndNothingIsRegistered) {
  RpcFixture f;
  const auto expect = [&](const char* field, const std::string& value,
                          const std::function<void(v1::RegisterModelRequest*)>& spoil) {
    v1::RegisterModelRequest request = RpcFixture::ModelRequest("m", "qjl");
    spoil(&request);
    v1::Model model;
    ExpectCall(f.Register(request, &model), grpc::StatusCode::INVALID_ARGUMENT, {field, value});
  };
  expect("num_layers", "0", [](auto* r) { r->mutable_layout()->set_num_layers(0); });
  expect("num_layers", "257", [](auto* r) { r->mutable_layout()->set_num_layers(257); });
  expect("num_kv_heads", "0", [](auto* r) { r->mutable_layout()->set_num_kv_heads(0); });
  expect("num_kv_heads", "257", [](auto* r) { r->mutable_layout()->set_num_kv_heads(257); });
  expect("head_dim", "8", [](auto* r) { r->mutable_layout()->set_head_dim(8); });
  expect("head_dim", "36", [](auto* r) { r->mutable_layout()->set_head_dim(36); });
  expect("head_dim", "584", [](auto* r) { r->mutable_layout()->set_head_dim(584); });
  expect("value_dim", "4294967288",
         [](auto* r) { r->mutable_layout()->set_value_dim(4294967288); });
  expect("block_tokens", "0", [](auto* r) { r->mutable_layout()->set_block_tokens(0); });
  expect("block_tokens", "1025", [](auto* r) { r->mutable_layout()->set_block_tokens(1025); });
  expect("key_dtype", "0",
         [](auto* r) { r->mutable_layout()->set_key_dtype(v1::DTYPE_UNSPECIFIED); });
  expect("value_dtype", "9",
         [](auto* r) { r->mutable_layout()->set_value_dtype(static_cast<v1::DType>(9)); });
  expect("value_source", "7",
         [](auto* r) { r->mutable_layout()->set_value_source(static_cast<v1::ValueSource>(7)); });
  expect("key_scale", "2", [](auto* r) { r->mutable_layout()->set_key_scale(2.0f); });
  expect("value_scale", "nan", [](auto* r) {
    r->mutable_layout()->set_value_scale(std::numeric_limits<float>::quiet_NaN());
  });
  expect("name", "0 characters", [](auto* r) { r->set_name(""); });
  expect("profile", "no-such", [](auto* r) { r->mutable_profiles(0)->set_name("no-such"); });
  expect("sign_bits", "8", [](auto* r) { r->mutable_profiles(0)->set_sign_bits(8); });
  expect("num_outliers", "17", [](auto* r) { r->mutable_profiles(0)->set_num_outliers(17); });
  expect("value_bits", "3", [](auto* r) { r->mutable_profiles(0)->set_value_bits(3); });
  expect("value_group_size", "24",
         [](auto* r) { r->mutable_profiles(0)->set_value_group_size(24); });
  // Values inside the keys: no sketch yet.
  expect("key_prefix", "qjl",
         [](auto* r) { r->mutable_layout()->set_value_source(v1::VALUE_SOURCE_KEY_PREFIX); });
  EXPECT_EQ(f.registry.size(), 0);
}

TEST(ModelsRpcTest, DenseProjectionsArePublishedAndHadamardOnesAreNot) {
  RpcFixture f;
  f.Register("paper", "qjl-paper");
  f.Register("qjl", "qjl");
  v1::GetProjectionRequest request;
  request.set_model("paper");
  grpc::ClientContext call, none_call;
  const auto stream = f.models->GetProjection(&call, request);
  std::string rows;
  uint32_t num_rows = 0;
  for (v1::GetProjectionResponse message; stream->Read(&message);) {
    if (message.num_rows() != 0) num_rows = message.num_rows();
    rows += message.payload();
  }
  ASSERT_TRUE(stream->Finish().ok());
  EXPECT_EQ(num_rows, 128);  // m = 4d in the first layer of two
  ASSERT_EQ(rows.size(), size_t{num_rows} * 32 * sizeof(float));
  std::vector<float> floats(rows.size() / sizeof(float));
  std::memcpy(floats.data(), rows.data(), rows.size());
  // Rows of a block are orthogonal and have norm sqrt(d).
  double same = 0, other = 0;
  for (int c = 0; c < 32; ++c) {
    same += floats[c] * floats[c];
    other += floats[c] * floats[32 + c];
  }
  EXPECT_NEAR(same, 32, 1e-4);
  EXPECT_NEAR(other, 0, 1e-4);

  request.set_model("qjl");
  const auto none = f.models->GetProjection(&none_call, request);
  v1::GetProjectionResponse message;
  EXPECT_FALSE(none->Read(&message));
  ExpectCall(none->Finish(), grpc::StatusCode::FAILED_PRECONDITION, {"qjl"});
}

}  // namespace
}  // namespace sketchkv
