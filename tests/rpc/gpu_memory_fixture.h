#pragma once

#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "tests/rpc/rpc_fixture.h"
#include "tests/testing/fake_gpu.h"

// A worker's memory on the card. The card is a fake, and its memory the host's.
namespace sketchkv {

using Code = grpc::StatusCode;

inline constexpr size_t kAllocationBytes = size_t{1} << 20;
inline constexpr uint64_t kPayloadAt = 4096;
inline constexpr uint64_t kQueriesAt = 256 << 10;
inline constexpr uint64_t kOutputsAt = 512 << 10;
inline constexpr uint64_t kQueryBytes = 2 * 4 * 32 * sizeof(float);   // of Request()
inline constexpr uint64_t kOutputBytes = 2 * 4 * 17 * sizeof(float);  // of its answer

struct Card {
  testing::FakeGpu gpu{size_t{1} << 20};
};

// A server with a card, and a worker's allocation on it.
struct GpuFixture : Card, RpcFixture {
  explicit GpuFixture(uint64_t inflight_bytes = uint64_t{256} << 20, size_t max_queued = 1000)
      : RpcFixture({.inflight_bytes = inflight_bytes, .max_queued = max_queued, .gpu = &gpu}),
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

}  // namespace sketchkv
