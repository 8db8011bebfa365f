#pragma once

#include <functional>
#include <random>
#include <span>
#include <vector>

#include "tests/client/fake_server.h"
#include "tests/testing/status_matchers.h"

// What tests of Put and Get share: a model's small parts, and a server that answers as told.
namespace sketchkv {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

inline std::vector<std::byte> Bytes(size_t size, uint32_t seed = 1) {
  std::mt19937 random(seed);
  std::vector<std::byte> bytes(size);
  for (std::byte& byte : bytes) byte = static_cast<std::byte>(random());
  return bytes;
}

inline PutPart SmallPart(std::span<const std::byte> payload, char name = 'a') {
  PutPart part;
  part.model = "small";
  part.block_hash = BlockId(32, name);
  part.num_tokens = 8;
  part.payload = payload;
  return part;
}

inline GetPart SmallGet(char name = 'a') {
  GetPart part;
  part.model = "small";
  part.block_hash = BlockId(32, name);
  part.type = ElementType::kFp32;
  return part;
}

inline v1::GetResponse GetAnswer(uint64_t id, const std::vector<std::byte>& payload) {
  v1::GetResponse response;
  response.set_request_id(id);
  response.mutable_status()->set_code(0);
  response.mutable_part()->mutable_range()->set_layer_count(2);
  response.mutable_part()->mutable_range()->set_head_count(2);
  response.mutable_part()->set_num_tokens(8);
  response.mutable_part()->set_raw_order(v1::RAW_ORDER_NHD);
  response.set_checksum(Checksum(payload));
  response.set_payload(payload.data(), payload.size());
  return response;
}

class StoreTest : public testing::Test {
 protected:
  StoreTest() { options_.retry_pause = milliseconds(1); }
  // Answers every item of every stream with `answer(id)`.
  void AnswerPuts(std::function<v1::PutResponse(uint64_t)> answer) {
    server_.cache.on_put = [answer](grpc::ServerContext*, PutStream* stream) {
      ArrivedPut put;
      while (ReadPut(stream, kSmallBlockBytes, &put)) {
        stream->Write(answer(put.first.request_id()));
      }
      return grpc::Status::OK;
    };
  }

  ClientOptions options_;
  FakeServer server_;
  const std::vector<std::byte> payload_ = Bytes(kSmallBlockBytes);
};

}  // namespace sketchkv
