#include <gtest/gtest.h>

#include "tests/rpc/rpc_fixture.h"

namespace sketchkv {
namespace {

v1::PartLayout LayoutOf(const PartLayout& part) {
  v1::PartLayout message;
  message.mutable_range()->set_layer_begin(part.range.layer_begin);
  message.mutable_range()->set_layer_count(part.range.layer_count);
  message.mutable_range()->set_head_begin(part.range.head_begin);
  message.mutable_range()->set_head_count(part.range.head_count);
  message.set_num_tokens(part.num_tokens);
  message.set_raw_order(static_cast<v1::RawOrder>(part.raw_order));
  message.set_fingerprint(part.fingerprint);
  message.set_format_version(part.format_version);
  return message;
}

TEST(CodecRpcTest, EncodeStoresNothingAndGivesTheBytesAPutStores) {
  RpcFixture f;
  for (const std::string profile : {"raw", "qjl", "qjl-paper", "qjl2p", "qjl3p", "qjl4p", "klt"}) {
    const auto model = f.Register(profile, profile);
    const RawPart part = RandomPart(*model, {0, 2, 1, 1}, 13, 1, RawOrder::kHnd);
    v1::EncodeRequest request;
    request.set_request_id(3);
    request.set_model(profile);
    *request.mutable_part() = LayoutOf(part.layout);
    request.set_payload(part.payload);
    request.set_checksum(part.layout.checksum);
    grpc::ClientContext call;
    std::vector<v1::EncodeResponse> encoded;
    const auto stream = f.codec->Encode(&call);
    ASSERT_TRUE(RpcFixture::Exchange(stream.get(), {request}, &encoded).ok());
    ASSERT_EQ(encoded.size(), 1);
    ASSERT_EQ(encoded[0].status().code(), 0) << encoded[0].status().message();
    EXPECT_EQ(f.pool.GetStats().blocks, 0);
    const Part expected = *EncodePart(f.engine, *model, part.layout, Bytes(part.payload));
    EXPECT_EQ(encoded[0].payload(), expected.payload.ToString());

    v1::DecodeRequest back;
    back.set_request_id(4);
    back.set_model(profile);
    *back.mutable_part() = encoded[0].part();
    back.mutable_format()->set_dtype(v1::DTYPE_FP32);
    back.mutable_format()->set_raw_order(v1::RAW_ORDER_HND);
    back.set_payload(encoded[0].payload());
    back.set_checksum(encoded[0].checksum());
    grpc::ClientContext back_call;
    std::vector<v1::DecodeResponse> decoded;
    const auto back_stream = f.codec->Decode(&back_call);
    ASSERT_TRUE(RpcFixture::Exchange(back_stream.get(), {back}, &decoded).ok());
    ASSERT_EQ(decoded.size(), 1);
    ASSERT_EQ(decoded[0].status().code(), 0) << decoded[0].status().message();
    EXPECT_EQ(decoded[0].checksum(), PayloadChecksum(Bytes(decoded[0].payload())));
    if (profile == "raw") {
      EXPECT_EQ(decoded[0].payload(), part.payload);
    } else {
      EXPECT_EQ(decoded[0].payload().size(), part.payload.size());
    }
  }
}

TEST(CodecRpcTest, DecodeRefusesDamagedAndForeignCells) {
  RpcFixture f;
  const auto model = f.Register("m", "qjl");
  const RawPart part = RandomPart(*model, {}, 16, 1);
  const Part encoded = *EncodePart(f.engine, *model, part.layout, Bytes(part.payload));
  std::vector<v1::DecodeRequest> requests(4);
  for (uint64_t i = 0; i < requests.size(); ++i) {
    requests[i].set_request_id(i + 1);
    requests[i].set_model("m");
    *requests[i].mutable_part() = LayoutOf(encoded.layout);
    requests[i].mutable_format()->set_dtype(v1::DTYPE_BF16);
    requests[i].mutable_format()->set_raw_order(v1::RAW_ORDER_NHD);
    requests[i].set_payload(encoded.payload.ToString());
    requests[i].set_checksum(encoded.layout.checksum);
  }
  (*requests[0].mutable_payload())[500] ^= 1;                // against its checksum
  requests[1].mutable_payload()->replace(0, 2, "\xff\xff");  // a scale against the format
  requests[1].set_checksum(PayloadChecksum(Bytes(requests[1].payload())));
  requests[2].mutable_part()->set_format_version(kFormatVersion + 7);
  grpc::ClientContext call;
  std::vector<v1::DecodeResponse> responses;
  const auto stream = f.codec->Decode(&call);
  ASSERT_TRUE(RpcFixture::Exchange(stream.get(), requests, &responses).ok());
  ASSERT_EQ(responses.size(), 4);
  for (const v1::DecodeResponse& response : responses) {
    switch (response.request_id()) {
      case 1:
        ExpectItem(response.status(), grpc::StatusCode::DATA_LOSS, {"checksum"});
        break;
      case 2:
        ExpectItem(response.status(), grpc::StatusCode::INVALID_ARGUMENT, {"layer 0, head 0"});
        break;
      case 3:
        ExpectItem(response.status(), grpc::StatusCode::INVALID_ARGUMENT, {"format_version is 8"});
        break;
      default:
        EXPECT_EQ(response.status().code(), 0) << response.status().message();
    }
  }
}

TEST(CodecRpcTest, ItemsFailAloneWithTheirReason) {
  RpcFixture f;
  const auto model = f.Register("m", "qjl");
  const RawPart part = RandomPart(*model, {}, 16, 1);
  std::vector<v1::EncodeRequest> requests(3);
  for (uint64_t i = 0; i < 3; ++i) {
    requests[i].set_request_id(i + 1);
    requests[i].set_model("m");
    *requests[i].mutable_part() = LayoutOf(part.layout);
    requests[i].set_payload(part.payload);
    requests[i].set_checksum(part.layout.checksum);
  }
  requests[0].set_checksum(1);
  requests[1].mutable_part()->mutable_range()->set_head_begin(2);
  grpc::ClientContext call;
  std::vector<v1::EncodeResponse> responses;
  const auto stream = f.codec->Encode(&call);
  ASSERT_TRUE(RpcFixture::Exchange(stream.get(), requests, &responses).ok());
  ASSERT_EQ(responses.size(), 3);
  for (const v1::EncodeResponse& response : responses) {
    if (response.request_id() == 1) {
      ExpectItem(response.status(), grpc::StatusCode::DATA_LOSS, {"0x1"});
    } else if (response.request_id() == 2) {
      ExpectItem(response.status(), grpc::StatusCode::INVALID_ARGUMENT, {"head_begin is 2", "2"});
    } else {
      EXPECT_EQ(response.status().code(), 0);
    }
  }
}

}  // namespace
}  // namespace sketchkv
