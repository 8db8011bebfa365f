#include "service/rpc/server.h"

#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/impl/server_builder_option.h>
#include <grpcpp/impl/server_builder_plugin.h>
#include <grpcpp/resource_quota.h>

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "service/rpc/attention_service.h"
#include "service/rpc/cache_service.h"
#include "service/rpc/codec_service.h"
#include "service/rpc/keep_awake.h"
#include "service/rpc/models_service.h"

namespace sketchkv {
namespace {

// gRPC 1.51's reflection library adds itself to every server of a process that links it.
class WithoutReflection final : public grpc::ServerBuilderOption {
 public:
  void UpdateArguments(grpc::ChannelArguments*) override {}
  void UpdatePlugins(std::vector<std::unique_ptr<grpc::ServerBuilderPlugin>>* plugins) override {
    std::erase_if(*plugins,
                  [](const auto& plugin) { return plugin->name() == "proto_server_reflection"; });
  }
};

class GrpcServer final : public Server {
 public:
  explicit GrpcServer(ServiceContext* context)
      : models_(context), codec_(context), cache_(context), attention_(context) {}

  absl::Status Bind(const ServerOptions& options) {
    grpc::EnableDefaultHealthCheckService(true);
    // Process-wide, and done by the library's own initialiser anyway; see WithoutReflection.
    grpc::reflection::InitProtoReflectionServerBuilderPlugin();
    grpc::ServerBuilder builder;
    if (!options.reflection) builder.SetOption(std::make_unique<WithoutReflection>());
    builder.AddListeningPort(options.listen, grpc::InsecureServerCredentials(), &port_);
    builder.RegisterService(&models_);
    builder.RegisterService(&codec_);
    builder.RegisterService(&cache_);
    builder.RegisterService(&attention_);
    SetLimits(options, &builder);
    server_ = builder.BuildAndStart();
    if (server_ == nullptr) {
      return absl::UnavailableError(absl::StrCat("cannot listen on ", options.listen));
    }
    SetServing(false);  // gRPC starts as serving
    keep_awake_ = std::make_unique<KeepAwake>(server_.get());
    return absl::OkStatus();
  }

  int port() const override { return port_; }

  void SetServing(bool serving) override {
    server_->GetHealthCheckService()->SetServingStatus("", serving);
    server_->GetHealthCheckService()->SetServingStatus("sketchkv", serving);
  }

  void SetGpuServing(bool serving) override {
    server_->GetHealthCheckService()->SetServingStatus("gpu", serving);
  }

  void Shutdown(std::chrono::milliseconds drain) override {
    keep_awake_ = nullptr;
    server_->Shutdown(std::chrono::system_clock::now() + drain);
    server_->Wait();
  }

 private:
  static void SetLimits(const ServerOptions& options, grpc::ServerBuilder* builder) {
    grpc::ResourceQuota quota("sketchkv");
    quota.Resize(options.resource_quota_bytes);
    builder->SetResourceQuota(quota);
    builder->SetMaxReceiveMessageSize(4 << 20);
    // Sketches do not compress, and a compressed message can grow without bound in memory.
    builder->SetCompressionAlgorithmSupportStatus(GRPC_COMPRESS_GZIP, false);
    builder->SetCompressionAlgorithmSupportStatus(GRPC_COMPRESS_DEFLATE, false);
    builder->AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, 100);
    builder->AddChannelArgument(GRPC_ARG_SERVER_HANDSHAKE_TIMEOUT_MS, 5000);
    builder->AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, 30000);
    builder->AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 10000);
    builder->AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
    builder->AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 10000);
    // Another process on the same port would take half of the connections.
    builder->AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  }

  ModelsService models_;
  CodecService codec_;
  CacheService cache_;
  AttentionService attention_;
  int port_ = 0;
  std::unique_ptr<grpc::Server> server_;
  std::unique_ptr<KeepAwake> keep_awake_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Server>> Server::Start(const ServerOptions& options,
                                                      ServiceContext* context) {
  auto server = std::make_unique<GrpcServer>(context);
  absl::Status bound = server->Bind(options);
  if (!bound.ok()) return bound;
  return server;
}

}  // namespace sketchkv
