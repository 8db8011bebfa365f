#include "service/rpc/cache_service.h"

#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"
#include "service/rpc/convert.h"
#include "service/rpc/get_stream.h"
#include "service/rpc/put_stream.h"
#include "service/rpc/unary.h"
#include "service/rpc/watch_stream.h"

namespace sketchkv {
namespace {

constexpr int kMaxHashes = 65536;
constexpr uint32_t kMaxLeaseMs = 600000;

absl::StatusOr<std::vector<BlockHash>> HashesFromProto(
    const google::protobuf::RepeatedPtrField<std::string>& field) {
  if (field.empty() || field.size() > kMaxHashes) {
    return absl::InvalidArgumentError(
        absl::StrCat("block_hashes has ", field.size(), " entries; it needs 1 to ", kMaxHashes));
  }
  std::vector<BlockHash> hashes;
  hashes.reserve(field.size());
  for (int i = 0; i < field.size(); ++i) {
    SKETCHKV_ASSIGN_OR_RETURN(
        BlockHash hash, HashFromProto(absl::StrCat("block_hashes[", i, "]").c_str(), field[i]));
    hashes.push_back(hash);
  }
  return hashes;
}

absl::Status ValidateTtl(const char* field, uint32_t ttl_ms, uint32_t least) {
  if (ttl_ms >= least && ttl_ms <= kMaxLeaseMs) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(field, " is ", ttl_ms, "; it needs ", least, " to ", kMaxLeaseMs));
}

void AddGpu(const BlockPool::Stats& pool, const Engine::Stats::Card& card,
            v1::GetStatsResponse* response) {
  v1::GetStatsResponse::Tier* tier = response->add_tiers();
  tier->set_name("gpu");
  tier->set_capacity_bytes(pool.gpu_budget_bytes);
  tier->set_page_bytes(pool.gpu_page_bytes);
  tier->set_used_bytes(pool.gpu_used_bytes);
  tier->set_blocks(pool.gpu_blocks);
  v1::GetStatsResponse::Gpu* gpu = response->mutable_gpu();
  gpu->set_name(card.name);
  gpu->set_failure(card.failure);
  gpu->set_stale_blocks(pool.stale_blocks);
  gpu->set_promoted_total(pool.promoted_total);
  gpu->set_demoted_total(pool.demoted_total);
  gpu->set_fallback_total(pool.gpu_fallback_total);
  gpu->set_lost_total(pool.gpu_lost_total);
  gpu->set_attention_calls_total(card.work.attention_calls_total);
  gpu->set_attention_batches_total(card.work.attention_batches_total);
  gpu->set_attention_microseconds_total(card.work.attention_microseconds_total);
}

}  // namespace

RawBidiReactor* CacheService::Put(grpc::CallbackServerContext* call) {
  return new PutStream(service_, call);
}

RawBidiReactor* CacheService::Get(grpc::CallbackServerContext* call) {
  return new GetStream(service_, call);
}

grpc::ServerWriteReactor<v1::WatchResponse>* CacheService::Watch(grpc::CallbackServerContext*,
                                                                 const v1::WatchRequest* request) {
  return new WatchStream(service_, *request);
}

grpc::ServerUnaryReactor* CacheService::Lookup(grpc::CallbackServerContext* call,
                                               const v1::LookupRequest* request,
                                               v1::LookupResponse* response) {
  return RunUnary(*service_, call, 0, [this, request, response]() -> absl::Status {
    SKETCHKV_ASSIGN_OR_RETURN(const std::shared_ptr<const Model> model,
                              service_->engine->models().Get(kDefaultTenant, request->model()));
    SKETCHKV_ASSIGN_OR_RETURN(const std::vector<BlockHash> chain,
                              HashesFromProto(request->block_hashes()));
    SKETCHKV_RETURN_IF_ERROR(ValidateTtl("lease_ttl_ms", request->lease_ttl_ms(), 0));
    SKETCHKV_ASSIGN_OR_RETURN(
        const Engine::LookupResult found,
        service_->engine->Lookup(kDefaultTenant, *model, chain,
                                 std::chrono::milliseconds(request->lease_ttl_ms())));
    response->set_num_blocks(found.num_blocks);
    response->set_num_tokens(found.num_tokens);
    if (found.lease.has_value()) {
      response->set_lease_id(found.lease->id);
      response->set_lease_ttl_ms(static_cast<uint32_t>(found.lease->ttl.count()));
    }
    return absl::OkStatus();
  });
}

grpc::ServerUnaryReactor* CacheService::Delete(grpc::CallbackServerContext* call,
                                               const v1::DeleteRequest* request,
                                               v1::DeleteResponse* response) {
  return RunUnary(*service_, call, 0, [this, request, response]() -> absl::Status {
    SKETCHKV_ASSIGN_OR_RETURN(const std::shared_ptr<const Model> model,
                              service_->engine->models().Get(kDefaultTenant, request->model()));
    SKETCHKV_ASSIGN_OR_RETURN(const std::vector<BlockHash> hashes,
                              HashesFromProto(request->block_hashes()));
    response->set_num_blocks(service_->engine->Delete(kDefaultTenant, *model, hashes));
    return absl::OkStatus();
  });
}

grpc::ServerUnaryReactor* CacheService::Clear(grpc::CallbackServerContext* call,
                                              const v1::ClearRequest* request,
                                              v1::ClearResponse* response) {
  return RunUnary(*service_, call, 0, [this, request, response]() -> absl::Status {
    SKETCHKV_ASSIGN_OR_RETURN(const std::shared_ptr<const Model> model,
                              service_->engine->models().Get(kDefaultTenant, request->model()));
    response->set_num_blocks(service_->engine->pool().Clear(kDefaultTenant, model->fingerprint));
    return absl::OkStatus();
  });
}

grpc::ServerUnaryReactor* CacheService::RenewLease(grpc::CallbackServerContext* call,
                                                   const v1::RenewLeaseRequest* request,
                                                   v1::RenewLeaseResponse* response) {
  return RunUnary(*service_, call, 0, [this, request, response]() -> absl::Status {
    SKETCHKV_RETURN_IF_ERROR(ValidateTtl("ttl_ms", request->ttl_ms(), 1));
    SKETCHKV_ASSIGN_OR_RETURN(
        const BlockPool::Lease lease,
        service_->engine->pool().RenewLease(kDefaultTenant, request->lease_id(),
                                            std::chrono::milliseconds(request->ttl_ms())));
    response->set_ttl_ms(static_cast<uint32_t>(lease.ttl.count()));
    return absl::OkStatus();
  });
}

grpc::ServerUnaryReactor* CacheService::ReleaseLease(grpc::CallbackServerContext* call,
                                                     const v1::ReleaseLeaseRequest* request,
                                                     v1::ReleaseLeaseResponse*) {
  return RunUnary(*service_, call, 0, [this, request] {
    return service_->engine->pool().ReleaseLease(kDefaultTenant, request->lease_id());
  });
}

grpc::ServerUnaryReactor* CacheService::GetStats(grpc::CallbackServerContext* call,
                                                 const v1::GetStatsRequest*,
                                                 v1::GetStatsResponse* response) {
  return RunUnary(*service_, call, 0, [this, response] {
    const BlockPool::Stats pool = service_->engine->pool().GetStats();
    const Engine::Stats engine = service_->engine->GetStats();
    v1::GetStatsResponse::Tier* tier = response->add_tiers();
    tier->set_name("host");
    tier->set_capacity_bytes(pool.budget_bytes);
    tier->set_page_bytes(pool.page_bytes);
    tier->set_used_bytes(pool.used_bytes);
    tier->set_pinned_bytes(pool.pinned_bytes);
    tier->set_leased_bytes(pool.leased_bytes);
    tier->set_blocks(pool.blocks);
    tier->set_sealed_blocks(pool.sealed_blocks);
    response->set_leases(pool.leases);
    response->set_evicted_total(pool.evicted_total);
    response->set_expired_total(pool.expired_total);
    response->set_deleted_total(pool.deleted_total);
    response->set_integrity_failures_total(pool.discarded_total);
    response->set_models(service_->engine->models().size());
    response->set_isa(service_->isa);
    response->set_version(service_->version);
    response->set_shm_socket(service_->shm_socket);
    response->set_shm_server(service_->shm_server);
    response->set_put_raw_bytes_total(engine.put_raw_bytes_total);
    response->set_put_stored_bytes_total(engine.put_stored_bytes_total);
    if (engine.card.has_value()) AddGpu(pool, *engine.card, response);
    return absl::OkStatus();
  });
}

}  // namespace sketchkv
