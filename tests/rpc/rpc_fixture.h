#pragma once

#include <grpcpp/grpcpp.h>

#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "service/engine/gpu_tier.h"
#include "service/pool/arena_tier.h"
#include "service/rpc/server.h"
#include "sketchkv/v1/attention.grpc.pb.h"
#include "sketchkv/v1/cache.grpc.pb.h"
#include "sketchkv/v1/codec.grpc.pb.h"
#include "sketchkv/v1/models.grpc.pb.h"
#include "tests/testing/engine_fixture.h"

namespace sketchkv {

inline std::string HashBytes(uint64_t n) {
  const BlockHash hash = TestHash(n);
  return std::string(hash.bytes().begin(), hash.bytes().end());
}

// A whole server on a free loopback port, and plain stubs to it: what a caller without our SDK has.
struct RpcFixture {
  struct Options {
    size_t budget_bytes = size_t{64} << 20;
    uint64_t inflight_bytes = uint64_t{256} << 20;
    size_t max_queued = 1000;
    TableStore::Limits tables;
    Gpu* gpu = nullptr;  // with the memory of a second tier; outlives the fixture
  };
  RpcFixture() : RpcFixture(Options()) {}
  explicit RpcFixture(const Options& options)
      : pool({.budget_bytes = options.budget_bytes, .event_capacity = 64}, &clock,
             options.gpu == nullptr ? nullptr
                                    : std::make_unique<ArenaTier>(options.gpu->TierMemory())),
        registry(Isa::kScalar, options.tables),
        executor(2, options.max_queued, &clock),
        gpu_tier(options.gpu, &pool, &registry),
        engine(&registry, &pool, &executor, options.gpu == nullptr ? nullptr : &gpu_tier),
        inflight(options.inflight_bytes),
        context{.engine = &engine,
                .executor = &executor,
                .inflight = &inflight,
                .writes = &writes,
                .gpu = options.gpu,
                .clock = &clock,
                .isa = "scalar",
                .version = "test"} {
    server = *Server::Start(
        {.listen = "127.0.0.1:0", .reflection = false, .resource_quota_bytes = uint64_t{512} << 20},
        &context);
    server->SetServing(true);
    channel = grpc::CreateChannel("127.0.0.1:" + std::to_string(server->port()),
                                  grpc::InsecureChannelCredentials());
    models = v1::Models::NewStub(channel);
    cache = v1::Cache::NewStub(channel);
    codec = v1::Codec::NewStub(channel);
    attention = v1::Attention::NewStub(channel);
  }
  ~RpcFixture() {
    server->Shutdown(std::chrono::milliseconds(200));
    executor.Stop();
  }

  static void SetDeadline(grpc::ClientContext* call, int seconds = 60) {
    call->set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(seconds));
  }

  static v1::RegisterModelRequest ModelRequest(const std::string& name,
                                               const std::string& profile) {
    v1::RegisterModelRequest request;
    request.set_name(name);
    v1::KvLayout* layout = request.mutable_layout();
    layout->set_num_layers(2);
    layout->set_num_kv_heads(2);
    layout->set_head_dim(32);
    layout->set_value_dim(16);
    layout->set_block_tokens(16);
    layout->set_key_dtype(v1::DTYPE_FP32);
    layout->set_value_dtype(v1::DTYPE_FP32);
    request.add_profiles()->set_name(profile);
    return request;
  }
  grpc::Status Register(const v1::RegisterModelRequest& request, v1::Model* model) {
    grpc::ClientContext call;
    SetDeadline(&call);
    return models->RegisterModel(&call, request, model);
  }
  // The layout of ModelRequest.
  static KvLayout ModelLayout() {
    return {.num_layers = 2,
            .num_kv_heads = 2,
            .head_dim = 32,
            .value_dim = 16,
            .block_tokens = 16,
            .key_dtype = DType::kFp32,
            .value_dtype = DType::kFp32};
  }
  // Registers, with random tables where the profile needs some, and returns the engine's own view
  // of the model.
  std::shared_ptr<const Model> Register(const std::string& name, const std::string& profile) {
    v1::RegisterModelRequest request = ModelRequest(name, profile);
    if (profile == "klt") {
      const auto stored = registry.tables().Add(0, ModelLayout(), RandomHeads(ModelLayout()));
      request.set_tables_digest(std::string(stored->digest.begin(), stored->digest.end()));
    }
    v1::Model model;
    const grpc::Status status = Register(request, &model);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return *registry.Get(0, name);
  }

  // The messages of one put, in chunks of `chunk` bytes.
  static std::vector<v1::PutRequest> PutMessages(uint64_t request_id, const std::string& model,
                                                 uint64_t hash, uint64_t parent,
                                                 const RawPart& part, size_t chunk = 1 << 20) {
    std::vector<v1::PutRequest> messages;
    for (size_t begin = 0; begin < part.payload.size(); begin += chunk) {
      v1::PutRequest message;
      message.set_request_id(request_id);
      if (begin == 0) {
        v1::PutHeader* header = message.mutable_header();
        header->set_model(model);
        header->set_block_hash(HashBytes(hash));
        if (parent != 0) header->set_parent_hash(HashBytes(parent));
        v1::PartLayout* layout = header->mutable_part();
        layout->mutable_range()->set_layer_begin(part.layout.range.layer_begin);
        layout->mutable_range()->set_layer_count(part.layout.range.layer_count);
        layout->mutable_range()->set_head_begin(part.layout.range.head_begin);
        layout->mutable_range()->set_head_count(part.layout.range.head_count);
        layout->set_num_tokens(part.layout.num_tokens);
        layout->set_raw_order(static_cast<v1::RawOrder>(part.layout.raw_order));
        layout->set_fingerprint(part.layout.fingerprint);
        layout->set_format_version(part.layout.format_version);
        header->set_encoded(!part.layout.fingerprint.empty());
      }
      message.set_payload(part.payload.substr(begin, chunk));
      if (begin + chunk >= part.payload.size()) message.set_checksum(part.layout.checksum);
      messages.push_back(std::move(message));
    }
    return messages;
  }
  // Sends all, then reads all answers.
  template <typename Request, typename Response>
  static grpc::Status Exchange(grpc::ClientReaderWriterInterface<Request, Response>* stream,
                               const std::vector<Request>& requests,
                               std::vector<Response>* responses) {
    for (const Request& request : requests) {
      if (!stream->Write(request)) break;
    }
    stream->WritesDone();
    for (Response response; stream->Read(&response);) responses->push_back(response);
    return stream->Finish();
  }
  std::vector<v1::PutResponse> Put(const std::vector<v1::PutRequest>& messages,
                                   grpc::Status* status = nullptr) {
    grpc::ClientContext call;
    SetDeadline(&call);
    std::vector<v1::PutResponse> responses;
    const auto stream = cache->Put(&call);
    const grpc::Status ended = Exchange(stream.get(), messages, &responses);
    if (status != nullptr) {
      *status = ended;
    } else {
      EXPECT_TRUE(ended.ok()) << ended.error_message();
    }
    return responses;
  }
  // One put that must succeed.
  void PutOk(const std::string& model, uint64_t hash, uint64_t parent, const RawPart& part) {
    const auto responses = Put(PutMessages(1, model, hash, parent, part));
    ASSERT_EQ(responses.size(), 1);
    ASSERT_EQ(responses[0].status().code(), 0) << responses[0].status().message();
  }
  std::vector<v1::GetResponse> Get(const std::vector<v1::GetRequest>& requests) {
    grpc::ClientContext call;
    SetDeadline(&call);
    std::vector<v1::GetResponse> responses;
    const auto stream = cache->Get(&call);
    const grpc::Status ended = Exchange(stream.get(), requests, &responses);
    EXPECT_TRUE(ended.ok()) << ended.error_message();
    return responses;
  }
  // A worker lets go of a payload a moment after its answer is on the way.
  void ExpectNothingInFlight() {
    for (int i = 0; i < 2000 && inflight.used() > 0; ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    EXPECT_EQ(inflight.used(), 0);
  }
  // What an encoded get sends is unpinned when gRPC is done with it, a moment after its end.
  void ExpectNothingPinned() {
    for (int i = 0; i < 2000 && pool.GetStats().pinned_bytes > 0; ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    EXPECT_EQ(pool.GetStats().pinned_bytes, 0);
  }
  static v1::GetRequest GetRequestFor(uint64_t request_id, const std::string& model,
                                      uint64_t hash) {
    v1::GetRequest request;
    request.set_request_id(request_id);
    request.set_model(model);
    request.set_block_hash(HashBytes(hash));
    return request;
  }

  SteadyClock clock;
  BlockPool pool;
  ModelRegistry registry;
  ThreadExecutor executor;
  GpuTier gpu_tier;
  Engine engine;
  InflightBytes inflight;
  WriteWatch writes;
  ServiceContext context;
  std::unique_ptr<Server> server;
  std::shared_ptr<grpc::Channel> channel;
  std::unique_ptr<v1::Models::Stub> models;
  std::unique_ptr<v1::Cache::Stub> cache;
  std::unique_ptr<v1::Codec::Stub> codec;
  std::unique_ptr<v1::Attention::Stub> attention;
};

// The status of the item, and every one of `parts` in its message.
inline void ExpectItem(const v1::ItemStatus& status, grpc::StatusCode code,
                       const std::vector<std::string>& parts) {
  EXPECT_EQ(status.code(), code) << status.message();
  for (const std::string& part : parts) EXPECT_THAT(status.message(), ::testing::HasSubstr(part));
}
inline void ExpectCall(const grpc::Status& status, grpc::StatusCode code,
                       const std::vector<std::string>& parts) {
  EXPECT_EQ(status.error_code(), code) << status.error_message();
  for (const std::string& part : parts) {
    EXPECT_THAT(status.error_message(), ::testing::HasSubstr(part));
  }
}

}  // namespace sketchkv
