#include "sketchkv/client.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "client/cpp/src/async_pool.h"
#include "client/cpp/src/attend.h"
#include "client/cpp/src/attend_session.h"
#include "client/cpp/src/convert.h"
#include "client/cpp/src/core.h"
#include "client/cpp/src/get.h"
#include "client/cpp/src/health.h"
#include "client/cpp/src/model_cache.h"
#include "client/cpp/src/part.h"
#include "client/cpp/src/put.h"
#include "client/cpp/src/segment_source.h"
#include "client/cpp/src/tables.h"
#include "client/cpp/src/transform.h"
#include "kernels/base/status_macros.h"

namespace sketchkv {
inline namespace sdk {
namespace {

using std::chrono::milliseconds;

constexpr milliseconds kMaxLeaseTtl{600'000};
constexpr milliseconds kMaxTimeout{std::chrono::hours(24)};
constexpr uint32_t kMaxRetries = 100;

absl::Status CheckMs(absl::string_view field, milliseconds value, milliseconds low,
                     milliseconds high) {
  if (value >= low && value <= high) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(field, " is ", value.count(), " ms, want ", low.count(), " to ", high.count()));
}

absl::Status CheckOptions(const ClientOptions& options) {
  if (options.target.empty()) return absl::InvalidArgumentError("target is empty");
  SKETCHKV_RETURN_IF_ERROR(CheckMs("timeout", options.timeout, milliseconds(1), kMaxTimeout));
  SKETCHKV_RETURN_IF_ERROR(
      CheckMs("retry_pause", options.retry_pause, milliseconds(0), milliseconds(60'000)));
  if (options.max_retries > kMaxRetries) {
    return absl::InvalidArgumentError(
        absl::StrCat("max_retries is ", options.max_retries, ", want 0 to ", kMaxRetries));
  }
  return absl::OkStatus();
}

}  // namespace

class Client::Impl {
 public:
  explicit Impl(ClientOptions options)
      : core(std::make_shared<client::ClientCore>(std::move(options))),
        models(std::make_shared<client::ModelCache>(core.get())),
        segments(std::make_shared<client::SegmentSource>(core.get())) {}
  ~Impl() { core->Close(); }  // then the pool's threads end their tasks

  // One unary call with retries: issue(context, request, &response).
  template <typename Response, typename Request, typename Issue>
  absl::StatusOr<Response> Unary(const Request& request, const Issue& issue) {
    Response response;
    SKETCHKV_RETURN_IF_ERROR(
        client::WithRetries(core.get(), core->DeadlineFromNow(), [&](grpc::ClientContext* context) {
          return client::FromCall(issue(context, request, &response), *context);
        }));
    return response;
  }

  // One unary call, tried once: for what must not be done twice.
  template <typename Response, typename Request, typename Issue>
  absl::StatusOr<Response> UnaryOnce(const Request& request, const Issue& issue) {
    Response response;
    client::Call call(core.get(), core->DeadlineFromNow());
    SKETCHKV_RETURN_IF_ERROR(
        client::FromCall(issue(call.context(), request, &response), *call.context()).status);
    return response;
  }

  const std::shared_ptr<client::ClientCore> core;
  const std::shared_ptr<client::ModelCache> models;
  const std::shared_ptr<client::SegmentSource> segments;
  client::AsyncPool pool;
};

Client::Client(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Client::~Client() = default;

absl::StatusOr<std::unique_ptr<Client>> Client::Create(ClientOptions options) {
  SKETCHKV_RETURN_IF_ERROR(CheckOptions(options));
  return std::unique_ptr<Client>(new Client(std::make_unique<Impl>(std::move(options))));
}

absl::Status Client::WaitUntilServing(milliseconds timeout) {
  return client::WaitUntilServing(impl_->core.get(), std::chrono::steady_clock::now() + timeout);
}

absl::StatusOr<ModelInfo> Client::RegisterModel(const std::string& name, const CacheLayout& layout,
                                                const std::vector<ProfileSpec>& profiles,
                                                const std::string& tables_digest) {
  v1::RegisterModelRequest request;
  request.set_name(name);
  *request.mutable_layout() = client::ToProto(layout);
  for (const ProfileSpec& profile : profiles) {
    *request.add_profiles() = client::ToProto(profile);
  }
  request.set_tables_digest(tables_digest);
  SKETCHKV_ASSIGN_OR_RETURN(
      v1::Model message,
      impl_->Unary<v1::Model>(request, [this](auto* context, const auto& sent, auto* response) {
        return impl_->core->models().RegisterModel(context, sent, response);
      }));
  SKETCHKV_ASSIGN_OR_RETURN(const ModelInfo answered, client::FromProto(message));
  SKETCHKV_RETURN_IF_ERROR(client::CheckLayoutAnswered(answered.layout, layout));
  SKETCHKV_ASSIGN_OR_RETURN(const auto model, impl_->models->Insert(std::move(message)));
  return model->info();
}

absl::StatusOr<ModelInfo> Client::GetModel(const std::string& name) {
  SKETCHKV_ASSIGN_OR_RETURN(const auto model,
                            impl_->models->Fetch(name, impl_->core->DeadlineFromNow()));
  return model->info();
}

absl::StatusOr<std::vector<ModelInfo>> Client::ListModels() {
  SKETCHKV_ASSIGN_OR_RETURN(
      const v1::ListModelsResponse response,
      impl_->Unary<v1::ListModelsResponse>(
          v1::ListModelsRequest(), [this](auto* context, const auto& sent, auto* received) {
            return impl_->core->models().ListModels(context, sent, received);
          }));
  std::vector<ModelInfo> models;
  for (const v1::Model& message : response.models()) {
    SKETCHKV_ASSIGN_OR_RETURN(ModelInfo model, client::FromProto(message));
    models.push_back(std::move(model));
  }
  return models;
}

absl::StatusOr<uint64_t> Client::UnregisterModel(const std::string& name) {
  v1::UnregisterModelRequest request;
  request.set_name(name);
  impl_->models->Drop(name);
  // A second try would find the name gone, or taken by another model.
  SKETCHKV_ASSIGN_OR_RETURN(const v1::UnregisterModelResponse response,
                            impl_->UnaryOnce<v1::UnregisterModelResponse>(
                                request, [this](auto* context, const auto& sent, auto* received) {
                                  return impl_->core->models().UnregisterModel(context, sent,
                                                                               received);
                                }));
  return response.dropped_blocks();
}

absl::StatusOr<std::string> Client::UploadTables(const CacheLayout& layout,
                                                 std::span<const HeadTableSpec> tables) {
  return client::UploadTables(impl_->core.get(), layout, tables, impl_->core->DeadlineFromNow());
}

absl::StatusOr<std::vector<HeadTableSpec>> Client::GetTables(const std::string& name) {
  const TimePoint deadline = impl_->core->DeadlineFromNow();
  SKETCHKV_ASSIGN_OR_RETURN(const auto model, impl_->models->Fetch(name, deadline));
  SKETCHKV_ASSIGN_OR_RETURN(const auto tables,
                            client::FetchTables(impl_->core.get(), model->message(), deadline));
  return client::ToSpecs(*tables);
}

Transport Client::transport() {
  const bool shared = impl_->segments->Await(impl_->core->DeadlineFromNow()) != nullptr;
  return shared ? Transport::kSharedMemory : Transport::kGrpc;
}

absl::StatusOr<SharedBuffer> Client::AllocateShared(size_t bytes) {
  const auto segment = impl_->segments->Await(impl_->core->DeadlineFromNow());
  if (segment == nullptr) {
    return absl::UnavailableError(
        "no memory is shared with the server: it shares none, or is on "
        "another machine");
  }
  std::shared_ptr<client::SharedSegment::Region> region = segment->Allocate(bytes);
  if (region == nullptr) {
    return absl::ResourceExhaustedError(
        absl::StrCat("no ", bytes, " bytes are free in the segment; shared_memory_bytes is ",
                     impl_->core->options().shared_memory_bytes));
  }
  const std::span<std::byte> where = region->bytes();
  return SharedBuffer(where, std::move(region));
}

absl::StatusOr<PutResult> Client::Put(const PutPart& part) {
  return std::move(PutAll(std::span(&part, 1))[0]);
}

std::vector<absl::StatusOr<PutResult>> Client::PutAll(std::span<const PutPart> parts) {
  return client::PutParts(impl_->core.get(), impl_->models.get(), impl_->segments.get(), parts,
                          impl_->core->DeadlineFromNow());
}

absl::StatusOr<LookupResult> Client::Lookup(const std::string& model,
                                            std::span<const BlockId> chain,
                                            milliseconds lease_ttl) {
  SKETCHKV_RETURN_IF_ERROR(client::CheckChain("chain", chain));
  SKETCHKV_RETURN_IF_ERROR(CheckMs("lease_ttl", lease_ttl, milliseconds(0), kMaxLeaseTtl));
  v1::LookupRequest request;
  request.set_model(model);
  for (const BlockId& block : chain) request.add_block_hashes(block);
  request.set_lease_ttl_ms(static_cast<uint32_t>(lease_ttl.count()));
  const auto issue = [this](auto* context, const auto& sent, auto* received) {
    return impl_->core->cache().Lookup(context, sent, received);
  };
  // The lease of a try whose answer was lost would pin its blocks until it runs out.
  const bool leases = lease_ttl.count() > 0;
  SKETCHKV_ASSIGN_OR_RETURN(const v1::LookupResponse response,
                            leases ? impl_->UnaryOnce<v1::LookupResponse>(request, issue)
                                   : impl_->Unary<v1::LookupResponse>(request, issue));
  if (response.num_blocks() > chain.size()) {
    return absl::InternalError(absl::StrCat("the server's num_blocks is ", response.num_blocks(),
                                            ", the chain has ", chain.size()));
  }
  return LookupResult{response.num_blocks(), response.num_tokens(), response.lease_id(),
                      response.lease_ttl_ms()};
}

absl::StatusOr<GetResult> Client::Get(const GetPart& part) {
  return std::move(GetAll(std::span(&part, 1))[0]);
}

std::vector<absl::StatusOr<GetResult>> Client::GetAll(std::span<const GetPart> parts) {
  return client::GetParts(impl_->core.get(), impl_->models.get(), impl_->segments.get(), parts,
                          impl_->core->DeadlineFromNow());
}

absl::StatusOr<uint64_t> Client::Delete(const std::string& model, std::span<const BlockId> blocks) {
  SKETCHKV_RETURN_IF_ERROR(client::CheckChain("blocks", blocks));
  v1::DeleteRequest request;
  request.set_model(model);
  for (const BlockId& block : blocks) request.add_block_hashes(block);
  SKETCHKV_ASSIGN_OR_RETURN(const v1::DeleteResponse response,
                            impl_->Unary<v1::DeleteResponse>(
                                request, [this](auto* context, const auto& sent, auto* received) {
                                  return impl_->core->cache().Delete(context, sent, received);
                                }));
  return response.num_blocks();
}

absl::StatusOr<uint64_t> Client::Clear(const std::string& model) {
  v1::ClearRequest request;
  request.set_model(model);
  SKETCHKV_ASSIGN_OR_RETURN(const v1::ClearResponse response,
                            impl_->Unary<v1::ClearResponse>(
                                request, [this](auto* context, const auto& sent, auto* received) {
                                  return impl_->core->cache().Clear(context, sent, received);
                                }));
  return response.num_blocks();
}

absl::StatusOr<milliseconds> Client::RenewLease(uint64_t lease_id, milliseconds ttl) {
  SKETCHKV_RETURN_IF_ERROR(CheckMs("ttl", ttl, milliseconds(1), kMaxLeaseTtl));
  v1::RenewLeaseRequest request;
  request.set_lease_id(lease_id);
  request.set_ttl_ms(static_cast<uint32_t>(ttl.count()));
  SKETCHKV_ASSIGN_OR_RETURN(const v1::RenewLeaseResponse response,
                            impl_->Unary<v1::RenewLeaseResponse>(
                                request, [this](auto* context, const auto& sent, auto* received) {
                                  return impl_->core->cache().RenewLease(context, sent, received);
                                }));
  return milliseconds(response.ttl_ms());
}

absl::Status Client::ReleaseLease(uint64_t lease_id) {
  v1::ReleaseLeaseRequest request;
  request.set_lease_id(lease_id);
  bool repeated = false;
  const auto issue = [&](auto* context, const auto& sent, auto* received) {
    const grpc::Status status = impl_->core->cache().ReleaseLease(context, sent, received);
    // The try before may have released it and only its answer been lost.
    const bool gone = repeated && status.error_code() == grpc::StatusCode::NOT_FOUND;
    repeated = true;
    return gone ? grpc::Status::OK : status;
  };
  return impl_->Unary<v1::ReleaseLeaseResponse>(request, issue).status();
}

absl::StatusOr<ServerStats> Client::GetStats() {
  SKETCHKV_ASSIGN_OR_RETURN(
      const v1::GetStatsResponse response,
      impl_->Unary<v1::GetStatsResponse>(
          v1::GetStatsRequest(), [this](auto* context, const auto& sent, auto* received) {
            return impl_->core->cache().GetStats(context, sent, received);
          }));
  return client::FromProto(response);
}

absl::StatusOr<std::vector<std::byte>> Client::Encode(const PutPart& part) {
  return client::EncodePart(impl_->core.get(), impl_->models.get(), part,
                            impl_->core->DeadlineFromNow());
}

absl::StatusOr<std::vector<std::byte>> Client::Decode(const std::string& model,
                                                      const PartRange& range, uint32_t num_tokens,
                                                      std::span<const std::byte> cells,
                                                      ElementType type, RawOrder order) {
  return client::DecodeCells(impl_->core.get(), impl_->models.get(),
                             {model, range, num_tokens, cells, type, order},
                             impl_->core->DeadlineFromNow());
}

absl::StatusOr<std::vector<AttentionOutput>> Client::Attend(const AttentionCall& call) {
  return client::AttendOnce(impl_->core.get(), impl_->models.get(), impl_->segments.get(), call,
                            impl_->core->DeadlineFromNow());
}

absl::StatusOr<std::vector<ScoreOutput>> Client::Score(const AttentionCall& call) {
  return client::ScoreOnce(impl_->core.get(), impl_->models.get(), call,
                           impl_->core->DeadlineFromNow());
}

// Time spent waiting for a thread of the pool counts: the deadlines begin here.
void Client::PutAsync(const PutPart& part, std::function<void(absl::StatusOr<PutResult>)> done) {
  impl_->pool.Submit([impl = impl_.get(), part, deadline = impl_->core->DeadlineFromNow(),
                      done = std::move(done)] {
    done(std::move(client::PutParts(impl->core.get(), impl->models.get(), impl->segments.get(),
                                    std::span(&part, 1), deadline)[0]));
  });
}

void Client::GetAsync(const GetPart& part, std::function<void(absl::StatusOr<GetResult>)> done) {
  impl_->pool.Submit([impl = impl_.get(), part, deadline = impl_->core->DeadlineFromNow(),
                      done = std::move(done)] {
    done(std::move(client::GetParts(impl->core.get(), impl->models.get(), impl->segments.get(),
                                    std::span(&part, 1), deadline)[0]));
  });
}

void Client::AttendAsync(const AttentionCall& call,
                         std::function<void(absl::StatusOr<std::vector<AttentionOutput>>)> done) {
  impl_->pool.Submit([impl = impl_.get(), call, deadline = impl_->core->DeadlineFromNow(),
                      done = std::move(done)] {
    done(client::AttendOnce(impl->core.get(), impl->models.get(), impl->segments.get(), call,
                            deadline));
  });
}

std::unique_ptr<Client::AttendSession> Client::NewAttendSession() {
  return client::MakeAttendSession(impl_->core, impl_->models, impl_->segments);
}

absl::Status Client::Watch(const std::string& model, uint64_t from_sequence,
                           const std::function<bool(const CacheEvent&)>& on_event) {
  v1::WatchRequest request;
  request.set_model(model);
  request.set_from_sequence(from_sequence);
  // Once cancelled by ~Client, this call still needs the core.
  const std::shared_ptr<client::ClientCore> core = impl_->core;
  client::Call call(core.get());
  const auto stream = core->cache().Watch(call.context(), request);
  v1::WatchResponse event;
  bool stopped = false;
  while (!stopped && stream->Read(&event)) {
    stopped = !on_event(client::FromProto(event));
    if (stopped) call.context()->TryCancel();
  }
  // Whatever is still on its way must be read before Finish.
  while (stream->Read(&event)) {
  }
  const absl::Status status = client::FromGrpc(stream->Finish());
  return stopped ? absl::OkStatus() : status;
}

}  // namespace sdk
}  // namespace sketchkv
