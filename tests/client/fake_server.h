#pragma once

#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>

#include <atomic>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "client/cpp/src/part.h"
#include "kernels/base/xxh3.h"
#include "sketchkv/client.h"
#include "sketchkv/v1/attention.grpc.pb.h"
#include "sketchkv/v1/cache.grpc.pb.h"
#include "sketchkv/v1/codec.grpc.pb.h"
#include "sketchkv/v1/models.grpc.pb.h"

namespace sketchkv {

// A model of 2 layers, 2 kv heads, dim 16, 8 tokens, fp32, whose cells are 64 bytes.
inline v1::Model SmallModel(const std::string& name) {
  v1::Model model;
  model.set_name(name);
  v1::KvLayout* layout = model.mutable_layout();
  layout->set_num_layers(2);
  layout->set_num_kv_heads(2);
  layout->set_head_dim(16);
  layout->set_value_dim(16);
  layout->set_block_tokens(8);
  layout->set_key_dtype(v1::DTYPE_FP32);
  layout->set_value_dtype(v1::DTYPE_FP32);
  layout->set_value_source(v1::VALUE_SOURCE_SEPARATE);
  v1::Profile* profile = model.add_profiles();
  profile->set_name("qjl");
  profile->set_layer_count(2);
  profile->set_key_codec(v1::KEY_CODEC_SKETCH);
  profile->set_sign_bits(32);
  profile->set_value_codec(v1::VALUE_CODEC_MIN_MAX);
  profile->set_value_bits(2);
  profile->set_cell_bytes(64);
  model.set_fingerprint(std::string(16, 'f'));
  model.set_slot_bytes(256);
  model.set_raw_block_bytes(4096);
  return model;
}
inline constexpr size_t kSmallBlockBytes = 2 * 2 * 8 * (16 + 16) * sizeof(float);

inline uint64_t Checksum(std::span<const std::byte> bytes) {
  RunningXxh3 checksum;
  checksum.Add(bytes);
  return checksum.Value();
}

// The payload of one put item as it arrived.
struct ArrivedPut {
  v1::PutRequest first;
  uint64_t checksum = 0;  // of the last message
  std::vector<size_t> chunk_bytes;
  std::string payload;
};

using PutStream = grpc::ServerReaderWriter<v1::PutResponse, v1::PutRequest>;
using GetStream = grpc::ServerReaderWriter<v1::GetResponse, v1::GetRequest>;
using AttendStreamRw = grpc::ServerReaderWriter<v1::AttendResponse, v1::AttentionRequest>;

// Reads the next whole item; `payload_bytes` is what it must have. False at the end.
inline bool ReadPut(PutStream* stream, size_t payload_bytes, ArrivedPut* put) {
  *put = {};
  v1::PutRequest request;
  while (stream->Read(&request)) {
    if (put->chunk_bytes.empty()) put->first = request;
    put->chunk_bytes.push_back(request.payload().size());
    put->payload += request.payload();
    put->checksum = request.checksum();
    if (put->payload.size() >= payload_bytes) return true;
  }
  return false;
}

inline v1::PutResponse PutAnswer(uint64_t id, int code = 0, const std::string& message = "",
                                 uint32_t retry_after_ms = 0) {
  v1::PutResponse response;
  response.set_request_id(id);
  response.mutable_status()->set_code(code);
  response.mutable_status()->set_message(message);
  response.mutable_status()->set_retry_after_ms(retry_after_ms);
  response.set_sealed(code == 0);
  return response;
}

class FakeModels final : public v1::Models::Service {
 public:
  grpc::Status GetModel(grpc::ServerContext*, const v1::GetModelRequest* request,
                        v1::Model* response) override {
    ++num_gets;
    const auto it = models.find(request->name());
    if (it == models.end()) return {grpc::StatusCode::NOT_FOUND, "model " + request->name()};
    *response = it->second;
    return grpc::Status::OK;
  }
  grpc::Status ListModels(grpc::ServerContext*, const v1::ListModelsRequest*,
                          v1::ListModelsResponse* response) override {
    for (const auto& [name, model] : models) *response->add_models() = model;
    return grpc::Status::OK;
  }

  grpc::Status RegisterModel(grpc::ServerContext*, const v1::RegisterModelRequest* request,
                             v1::Model* response) override {
    *response = SmallModel(request->name());  // whatever was asked for
    return grpc::Status::OK;
  }
  grpc::Status UnregisterModel(grpc::ServerContext*, const v1::UnregisterModelRequest*,
                               v1::UnregisterModelResponse*) override {
    ++num_unregisters;
    return {grpc::StatusCode::UNAVAILABLE, "dying"};
  }

  grpc::Status UploadTables(grpc::ServerContext*,
                            grpc::ServerReader<v1::UploadTablesRequest>* reader,
                            v1::UploadTablesResponse* response) override {
    ++num_uploads;
    return on_upload(reader, response);
  }
  grpc::Status GetTables(grpc::ServerContext*, const v1::GetTablesRequest* request,
                         grpc::ServerWriter<v1::GetTablesResponse>* writer) override {
    ++num_table_gets;
    return on_get_tables(request->model(), writer);
  }

  std::map<std::string, v1::Model> models = {{"small", SmallModel("small")}};
  std::function<grpc::Status(grpc::ServerReader<v1::UploadTablesRequest>*,
                             v1::UploadTablesResponse*)>
      on_upload;
  std::function<grpc::Status(const std::string&, grpc::ServerWriter<v1::GetTablesResponse>*)>
      on_get_tables;
  std::atomic<int> num_uploads = 0;
  std::atomic<int> num_table_gets = 0;
  std::atomic<int> num_gets = 0;
  std::atomic<int> num_unregisters = 0;
};

// Each method does what the test says; without a word from it, UNIMPLEMENTED.
class FakeCache final : public v1::Cache::Service {
 public:
  grpc::Status Put(grpc::ServerContext* context, PutStream* stream) override {
    ++num_puts;
    return on_put ? on_put(context, stream) : grpc::Status(grpc::StatusCode::UNIMPLEMENTED, "");
  }
  grpc::Status Get(grpc::ServerContext* context, GetStream* stream) override {
    return on_get ? on_get(context, stream) : grpc::Status(grpc::StatusCode::UNIMPLEMENTED, "");
  }
  grpc::Status Lookup(grpc::ServerContext* context, const v1::LookupRequest* request,
                      v1::LookupResponse* response) override {
    ++num_lookups;
    return on_lookup ? on_lookup(context, request, response)
                     : grpc::Status(grpc::StatusCode::UNIMPLEMENTED, "");
  }

  grpc::Status ReleaseLease(grpc::ServerContext*, const v1::ReleaseLeaseRequest*,
                            v1::ReleaseLeaseResponse*) override {
    return on_release ? on_release() : grpc::Status(grpc::StatusCode::UNIMPLEMENTED, "");
  }
  grpc::Status Watch(grpc::ServerContext* context, const v1::WatchRequest*,
                     grpc::ServerWriter<v1::WatchResponse>*) override {
    return on_watch ? on_watch(context) : grpc::Status(grpc::StatusCode::UNIMPLEMENTED, "");
  }

  grpc::Status GetStats(grpc::ServerContext*, const v1::GetStatsRequest*,
                        v1::GetStatsResponse* response) override {
    *response = stats;
    return grpc::Status::OK;
  }

  v1::GetStatsResponse stats;
  std::function<grpc::Status()> on_release;
  std::function<grpc::Status(grpc::ServerContext*)> on_watch;
  std::function<grpc::Status(grpc::ServerContext*, PutStream*)> on_put;
  std::function<grpc::Status(grpc::ServerContext*, GetStream*)> on_get;
  std::function<grpc::Status(grpc::ServerContext*, const v1::LookupRequest*, v1::LookupResponse*)>
      on_lookup;
  std::atomic<int> num_puts = 0;
  std::atomic<int> num_lookups = 0;
};

class FakeAttention final : public v1::Attention::Service {
 public:
  grpc::Status Attend(grpc::ServerContext* context, const v1::AttentionRequest* request,
                      v1::AttendResponse* response) override {
    return on_attend(context, request, response);
  }
  grpc::Status Score(grpc::ServerContext*, const v1::AttentionRequest*,
                     grpc::ServerWriter<v1::ScoreResponse>* writer) override {
    return on_score(writer);
  }
  grpc::Status AttendStream(grpc::ServerContext* context, AttendStreamRw* stream) override {
    ++num_streams;
    return on_stream(context, stream);
  }

  std::function<grpc::Status(grpc::ServerContext*, const v1::AttentionRequest*,
                             v1::AttendResponse*)>
      on_attend;
  std::function<grpc::Status(grpc::ServerWriter<v1::ScoreResponse>*)> on_score;
  std::function<grpc::Status(grpc::ServerContext*, AttendStreamRw*)> on_stream;
  std::atomic<int> num_streams = 0;
};

// Real gRPC on an ephemeral loopback port, faked services behind it.
class FakeServer {
 public:
  FakeServer() {
    grpc::EnableDefaultHealthCheckService(true);
    grpc::ServerBuilder builder;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port_);
    builder.RegisterService(&models);
    builder.RegisterService(&cache);
    builder.RegisterService(&attention);
    server_ = builder.BuildAndStart();
  }
  ~FakeServer() { Stop(); }

  // Cuts what is under way.
  void Stop() { server_->Shutdown(std::chrono::system_clock::now()); }
  [[nodiscard]] std::string target() const { return absl::StrCat("127.0.0.1:", port_); }
  [[nodiscard]] grpc::Server& grpc_server() { return *server_; }

  [[nodiscard]] std::unique_ptr<Client> NewClient(ClientOptions options = {}) const {
    options.target = target();
    return std::move(Client::Create(options)).value();
  }

  FakeModels models;
  FakeCache cache;
  FakeAttention attention;

 private:
  int port_ = 0;
  std::unique_ptr<grpc::Server> server_;
};

// Waits until the client has gone or given up.
inline void WaitUntilCancelled(grpc::ServerContext* context) {
  while (!context->IsCancelled()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
}

}  // namespace sketchkv
