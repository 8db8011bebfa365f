#pragma once

#include "service/rpc/service_context.h"
#include "sketchkv/v1/cache.grpc.pb.h"

namespace sketchkv {

// Put and Get are raw methods: their streams parse and make their messages themselves
// (proto/bulk_message.h).
template <typename Base>
using WithUnaryCacheMethods = v1::Cache::WithCallbackMethod_Lookup<
    v1::Cache::WithCallbackMethod_Delete<v1::Cache::WithCallbackMethod_Clear<
        v1::Cache::WithCallbackMethod_RenewLease<v1::Cache::WithCallbackMethod_ReleaseLease<
            v1::Cache::WithCallbackMethod_GetStats<Base>>>>>>;
using CacheServiceBase = v1::Cache::WithRawCallbackMethod_Put<v1::Cache::WithRawCallbackMethod_Get<
    v1::Cache::WithCallbackMethod_Watch<WithUnaryCacheMethods<v1::Cache::Service>>>>;

class CacheService final : public CacheServiceBase {
 public:
  explicit CacheService(ServiceContext* service) : service_(service) {}

  RawBidiReactor* Put(grpc::CallbackServerContext* call) override;
  RawBidiReactor* Get(grpc::CallbackServerContext* call) override;
  grpc::ServerWriteReactor<v1::WatchResponse>* Watch(grpc::CallbackServerContext* call,
                                                     const v1::WatchRequest* request) override;
  grpc::ServerUnaryReactor* Lookup(grpc::CallbackServerContext* call,
                                   const v1::LookupRequest* request,
                                   v1::LookupResponse* response) override;
  grpc::ServerUnaryReactor* Delete(grpc::CallbackServerContext* call,
                                   const v1::DeleteRequest* request,
                                   v1::DeleteResponse* response) override;
  grpc::ServerUnaryReactor* Clear(grpc::CallbackServerContext* call,
                                  const v1::ClearRequest* request,
                                  v1::ClearResponse* response) override;
  grpc::ServerUnaryReactor* RenewLease(grpc::CallbackServerContext* call,
                                       const v1::RenewLeaseRequest* request,
                                       v1::RenewLeaseResponse* response) override;
  grpc::ServerUnaryReactor* ReleaseLease(grpc::CallbackServerContext* call,
                                         const v1::ReleaseLeaseRequest* request,
                                         v1::ReleaseLeaseResponse* response) override;
  grpc::ServerUnaryReactor* GetStats(grpc::CallbackServerContext* call,
                                     const v1::GetStatsRequest* request,
                                     v1::GetStatsResponse* response) override;

 private:
  ServiceContext* const service_;
};

}  // namespace sketchkv
